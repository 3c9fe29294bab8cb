"""One raster file, readable on any grid, with a mask of the pixels that have data."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from hpcdl.errors import FailedError, UsageError
from hpcdl.raster.grid import Grid, parse_crs
from hpcdl.raster.warp import GDAL_TYPES, RESAMPLINGS, warped_document

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


class RasterSource:
    """One file: its grid, bands and pixel type are read at once, its pixels on demand.

    Handles are opened at the first read of a process, kept, and left behind by pickle and fork.

    Attributes:
        path: the file, absolute.
        grid: the file's own grid.
        dtype: pixel type of all bands, numpy's name.
        num_bands: bands without the alpha band.
        band_names: the file's stem; in a file of several bands their descriptions, else `stem_b1`, `stem_b2`, ….

    Raises:
        UsageError: no such file, not a raster, damaged, no CRS, no georeference, a pixel type that is not served.
    """

    def __init__(self, path: Path, crs: str | None = None, crs_option: str = "--image-crs") -> None:
        """Look at a file; `crs` is used when the file carries none, `crs_option` names the flag that would give it."""
        self.path = path.absolute()  # not resolved: a link's own name is the band's name
        if not self.path.is_file():
            what = "is a folder; give its files, such as 'folder/*.tif'" if self.path.is_dir() else "no such file"
            raise UsageError(f"{path}: {what}")
        try:
            with _quiet(), rasterio.open(self.path) as dataset:
                self._describe(dataset, crs, crs_option)
                _probe(dataset)
        except (RasterioError, OSError) as error:
            raise UsageError(f"{path}: not readable as a raster (truncated or damaged?): {_one_line(error)}") from None
        self._handles: dict[tuple[Grid, str, tuple[int, ...]], Any] = {}
        self._process = os.getpid()

    def _describe(self, dataset: Any, crs: str | None, crs_option: str) -> None:
        if dataset.crs is None and crs is None:
            raise UsageError(
                f"{self.path}: has no coordinate system; name it with {crs_option} EPSG:…, or write it into the file"
            )
        if dataset.transform.is_identity or dataset.transform.is_degenerate:
            raise UsageError(
                f"{self.path}: has no georeference (pixel size and corner); `gdal_translate -a_ullr` writes one"
            )
        alpha = [number for number, kind in enumerate(dataset.colorinterp, start=1) if kind == ColorInterp.alpha]
        if alpha and alpha != [dataset.count]:
            raise UsageError(
                f"{self.path}: its alpha band is number {alpha[0]} of {dataset.count}; only a last one is understood"
            )
        dtypes = set(dataset.dtypes)
        if len(dtypes) > 1 or not dtypes <= GDAL_TYPES.keys():
            raise UsageError(
                f"{self.path}: pixel type {', '.join(sorted(dtypes))}; one type a file, of {', '.join(GDAL_TYPES)}"
            )
        a, b, c, d, e, f = tuple(dataset.transform)[:6]
        wkt = (dataset.crs or parse_crs(crs or "")).to_wkt()
        self.grid = Grid(wkt, (a, b, c, d, e, f), dataset.height, dataset.width)
        self.dtype: str = dataset.dtypes[0]
        self.alpha: int | None = alpha[0] if alpha else None
        self.num_bands: int = dataset.count - len(alpha)
        stem, described = self.path.stem, dataset.descriptions
        self.band_names = (
            (stem,) if self.num_bands == 1 else tuple(described[n] or f"{stem}_b{n + 1}" for n in range(self.num_bands))
        )
        # NaN means "no data" in a float band that declares nothing else.
        missing = math.nan if np.dtype(self.dtype).kind == "f" else None
        self.nodatas: tuple[float | None, ...] = tuple(
            missing if value is None else float(value) for value in dataset.nodatavals[: self.num_bands]
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}

    def read(self, grid: Grid, row: int, col: int, height: int, width: int, resampling: str) -> tuple[Array, Mask]:
        """A window of `grid`: (pixels C × H × W, mask H × W that is true where all bands have data).

        On a grid that shares the file's pixels they are copied, whatever `resampling` says. Pixels without data hold
        arbitrary values.

        Raises:
            FailedError: the file cannot be read (any more), or is damaged in this window.
            UsageError: an unknown resampling method.
        """
        if resampling not in RESAMPLINGS:
            raise UsageError(f"resampling {resampling!r} is not known; allowed: {', '.join(RESAMPLINGS)}")
        offset = grid.offset_in(self.grid)
        try:
            with _quiet():
                if offset is not None:
                    return self._copy(offset[0] + row, offset[1] + col, height, width)
                return self._warp(grid, row, col, height, width, resampling)
        except (RasterioError, OSError) as error:
            where = f"rows {row}–{row + height}, columns {col}–{col + width} of the target grid"
            raise FailedError(
                f"{self.path}: not readable in {where} (truncated or damaged?): {_one_line(error)}"
            ) from None

    def _copy(self, row: int, col: int, height: int, width: int) -> tuple[Array, Mask]:
        pixels_CHW = np.zeros((self.num_bands, height, width), self.dtype)
        valid_HW = np.zeros((height, width), np.bool_)
        row0, row1 = max(row, 0), min(row + height, self.grid.height)
        col0, col1 = max(col, 0), min(col + width, self.grid.width)
        if row0 < row1 and col0 < col1:
            dataset = self._handle(self.grid, "nearest")
            window = Window(col0, row0, col1 - col0, row1 - row0)
            inside = (slice(row0 - row, row1 - row), slice(col0 - col, col1 - col))
            bands = list(range(1, self.num_bands + 1))
            pixels_CHW[:, *inside] = dataset.read(bands, window=window)
            valid_HW[inside] = (dataset.read_masks(bands, window=window) > 0).all(axis=0)
        return pixels_CHW, valid_HW & _finite(pixels_CHW)

    def _warp(self, grid: Grid, row: int, col: int, height: int, width: int, resampling: str) -> tuple[Array, Mask]:
        window = Window(col, row, width, height)
        parts = [self._handle(grid, resampling, bands).read(window=window) for bands in self._groups]
        pixels_CHW = np.concatenate([part[:-1] for part in parts])
        return pixels_CHW, np.logical_and.reduce([_finite(pixels_CHW), *(part[-1] > 0 for part in parts)])

    @property
    def _groups(self) -> list[tuple[int, ...]]:
        """Bands to warp together: with a nodata value each on its own, as GDAL merges the masks of several bands."""
        bands = range(1, self.num_bands + 1)
        return [tuple(bands)] if set(self.nodatas) == {None} else [(band,) for band in bands]

    def _handle(self, grid: Grid, resampling: str, bands: tuple[int, ...] = ()) -> Any:
        if self._process != os.getpid():  # a forked child shares the parent's file offsets: it must open its own
            self._handles, self._process = {}, os.getpid()
        key = (grid, resampling, bands)
        if key not in self._handles:
            if grid == self.grid:
                self._handles[key] = rasterio.open(self.path)
            else:
                nodatas = {band: self.nodatas[band - 1] for band in bands}
                text = warped_document(self.path, self.grid, grid, self.dtype, nodatas, self.alpha, resampling)
                self._handles[key] = rasterio.open(text)
        return self._handles[key]


def _probe(dataset: Any) -> None:
    """Read the first and last pixel of each band: a file cut short shows here instead of hours later."""
    for row, col in {(0, 0), (dataset.height - 1, dataset.width - 1)}:
        dataset.read(window=Window(col, row, 1, 1))


def _finite(pixels_CHW: Array) -> Mask:
    if pixels_CHW.dtype.kind != "f":
        return np.ones(pixels_CHW.shape[1:], np.bool_)
    finite_HW: Mask = np.asarray(np.isfinite(pixels_CHW).all(axis=0))
    return finite_HW


def _one_line(error: BaseException) -> str:
    # rasterio's "see previous exception" hides GDAL's own words in the cause.
    return " ".join(str(error.__cause__ or error).split())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # A file without georeference is refused in plain words by the caller.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
