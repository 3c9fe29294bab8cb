"""Label rasters: one band of class codes, read on their own grid or voted onto another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcdl.errors import UsageError
from hpcdl.raster.grid import Grid
from hpcdl.raster.source import RasterSource

Codes = npt.NDArray[np.int64]

# The code of a pixel without a label; files cannot hold it by chance, as negative codes are refused.
NO_LABEL = -1

LABEL_RESAMPLINGS = ("nearest", "mode")


class Labels:
    """A raster of class codes. Picklable; the file is opened at the first read of a process."""

    def __init__(self, source: RasterSource) -> None:
        self._source = source

    @property
    def path(self) -> Path:
        """The file."""
        return self._source.path

    @property
    def grid(self) -> Grid:
        """The file's own grid."""
        return self._source.grid

    def read(self, row: int, col: int, height: int, width: int) -> Codes:
        """Codes, H × W, of a window of the raster's own grid; see read_on."""
        return self.read_on(self.grid, row, col, height, width)

    def read_on(self, grid: Grid, row: int, col: int, height: int, width: int, resampling: str = "nearest") -> Codes:
        """Codes, H × W, of a window of another grid.

        Args:
            grid: the whole target grid; when it shares the raster's pixels they are copied.
            row, col: top-left pixel of the window, which must lie within the grid.
            height, width: size of the window in pixels.
            resampling: "nearest", or "mode" for the most frequent code under the pixel (for coarser grids).

        Returns:
            int64 codes, NO_LABEL (-1) where the raster has no data or does not reach.

        Raises:
            FailedError: the file is damaged in this window.
            UsageError: the raster holds negative codes that are not its nodata value.
        """
        if resampling not in LABEL_RESAMPLINGS:
            raise UsageError(f"label resampling {resampling!r} is not known; allowed: {', '.join(LABEL_RESAMPLINGS)}")
        pixels_CHW, valid_HW = self._source.read(grid, row, col, height, width, resampling)
        if bool((pixels_CHW[0][valid_HW] < 0).any()):
            raise UsageError(
                f"{self.path}: holds negative class codes; declare them as nodata (gdal_edit.py -a_nodata)"
            )
        return np.where(valid_HW, pixels_CHW[0].astype(np.int64), NO_LABEL)

    def count(self, grid: Grid, resampling: str = "nearest", rows_px: int = 1024) -> dict[int, int]:
        """Pixels of each code on a grid, NO_LABEL included when there are any; read in strips of `rows_px` rows."""
        counts: dict[int, int] = {}
        for row in range(0, grid.height, rows_px):
            codes_HW = self.read_on(grid, row, 0, min(rows_px, grid.height - row), grid.width, resampling)
            codes, numbers = np.unique(codes_HW, return_counts=True)
            for code, number in zip(codes.tolist(), numbers.tolist(), strict=True):
                counts[code] = counts.get(code, 0) + number
        return dict(sorted(counts.items()))

    def __getstate__(self) -> dict[str, Any]:
        return {"_source": self._source}


def open_labels(path: str | Path, crs: str | None = None) -> Labels:
    """A label raster; `crs` is used when the file carries none.

    Raises:
        UsageError: no such file, unreadable, no CRS, more than one band, or not integers.
    """
    source = RasterSource(Path(path), crs, crs_option="--label-crs")
    if source.num_bands != 1:
        raise UsageError(f"{path}: has {source.num_bands} bands; labels are one band of class codes")
    if np.dtype(source.dtype).kind == "f":
        raise UsageError(f"{path}: holds {source.dtype}; class codes are integers (gdal_translate -ot Byte converts)")
    return Labels(source)
