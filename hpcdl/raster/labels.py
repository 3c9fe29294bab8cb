"""Label rasters: one band of class codes, read on their own grid or voted onto another."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcdl.errors import UsageError
from hpcdl.raster.grid import Grid
from hpcdl.raster.legend import IGNORE_INDEX, ClassMap
from hpcdl.raster.source import Array, Mask, RasterSource

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
        pixels_HW, valid_HW = self._read(grid, row, col, height, width, resampling)
        return np.where(valid_HW, pixels_HW.astype(np.int64), NO_LABEL)

    def _read(self, grid: Grid, row: int, col: int, height: int, width: int, resampling: str) -> tuple[Array, Mask]:
        """Codes in the file's own type, and which of them are labels."""
        if resampling not in LABEL_RESAMPLINGS:
            raise UsageError(f"label resampling {resampling!r} is not known; allowed: {', '.join(LABEL_RESAMPLINGS)}")
        pixels_CHW, valid_HW = self._source.read(grid, row, col, height, width, resampling)
        pixels_HW = pixels_CHW[0]
        if pixels_HW.dtype.kind == "i" and bool((pixels_HW[valid_HW] < 0).any()):
            raise UsageError(
                f"{self.path}: holds negative class codes; declare them as nodata (gdal_edit.py -a_nodata)"
            )
        return pixels_HW, valid_HW

    def read_classes(
        self, classes: ClassMap, grid: Grid, row: int, col: int, height: int, width: int, resampling: str = "nearest"
    ) -> npt.NDArray[np.uint8]:
        """Dense class indices, H × W, of a window of another grid, IGNORE_INDEX where there is no class; see read_on."""
        pixels_HW, valid_HW = self._read(grid, row, col, height, width, resampling)
        if pixels_HW.dtype.itemsize > 2 or pixels_HW.dtype.kind != "u":
            return classes.indices(np.where(valid_HW, pixels_HW.astype(np.int64), NO_LABEL))
        indices_HW = classes.table().take(pixels_HW)
        indices_HW[~valid_HW] = IGNORE_INDEX
        return indices_HW

    def count(self, grid: Grid, resampling: str = "nearest", block_px: int = 2048) -> dict[int, int]:
        """Pixels of each code on a grid, NO_LABEL included when there are any; read block by block."""
        counts: Counter[int] = Counter()
        for row in range(0, grid.height, block_px):
            for col in range(0, grid.width, block_px):
                height, width = min(block_px, grid.height - row), min(block_px, grid.width - col)
                pixels_HW, valid_HW = self._read(grid, row, col, height, width, resampling)
                codes = pixels_HW.ravel() if valid_HW.all() else pixels_HW[valid_HW]
                if codes.dtype == np.uint8:
                    numbers = np.bincount(codes, minlength=256)
                    found = np.flatnonzero(numbers)
                    counts.update(dict(zip(found.tolist(), numbers[found].tolist(), strict=True)))
                else:
                    found, numbers = np.unique(codes, return_counts=True)
                    counts.update(dict(zip(found.tolist(), numbers.tolist(), strict=True)))
                if codes.size < pixels_HW.size:
                    counts[NO_LABEL] += pixels_HW.size - codes.size
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
