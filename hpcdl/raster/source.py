"""One raster file, readable on any grid, with a mask of the pixels that have data."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from hpcdl.errors import FailedError, UsageError
from hpcdl.raster.grid import Grid, parse_crs
from hpcdl.raster.quality import QualityRule
from hpcdl.raster.remap import MAX_WINDOW_PX, Remap, bilinear, nearest_index, remap_between
from hpcdl.raster.warp import GDAL_TYPES, RESAMPLINGS, warped_document

# GDAL's default is a share of the machine's memory, for each worker. It has to hold the source's tiles below a row of
# blocks; read once, at GDAL's first read.
os.environ.setdefault("GDAL_CACHEMAX", "128")

MASKED_RESAMPLINGS = ("nearest", "bilinear")
"""Methods that leave pixels out which a quality band says are not to be used; the others go through GDAL."""

# Files kept open in a process: below the 1024 that a login shell allows, and enough for the scenes around a place.
_MOST_OPEN = 200

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


class RasterSource:
    """One file: its grid, bands and pixel type are read at once, its pixels on demand.

    Picklable: the file is opened at the first read of a process.

    Attributes:
        path: the file, absolute.
        grid: the file's own grid.
        dtype: pixel type of all bands, numpy's name.
        num_bands: bands without the alpha band.
        band_names: the file's stem; in a file of several bands their descriptions, else `stem_b1`, `stem_b2`, ….
        nodatas: each band's value that means "no data", NaN for floats that declare none, else None.
        scales: each band's (gain, offset) as the file declares them; (1, 0) where it does not.

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
        self._quality: tuple[RasterSource, QualityRule] | None = None

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
        self.scales: tuple[tuple[float, float], ...] = tuple(
            zip(dataset.scales[: self.num_bands], dataset.offsets[: self.num_bands], strict=True)
        )

    @property
    def quality_rule(self) -> QualityRule | None:
        """Which codes of its quality band leave a pixel out."""
        return None if self._quality is None else self._quality[1]

    @property
    def quality_path(self) -> Path | None:
        """The quality band's file."""
        return None if self._quality is None else self._quality[0].path

    def leave_out(self, quality: RasterSource, rule: QualityRule) -> None:
        """Count pixels as without data where a quality band on the same grid says so."""
        self._quality = quality, rule

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
                if resampling in MASKED_RESAMPLINGS:
                    return self._remap(grid, row, col, height, width, resampling)
                if self._quality is not None:
                    raise UsageError(
                        f"resampling {resampling!r} would mix what {self._quality[0].path} leaves out into its neighbours; "
                        f"with quality bands choose {' or '.join(MASKED_RESAMPLINGS)}"
                    )
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
            inside = (slice(row0 - row, row1 - row), slice(col0 - col, col1 - col))
            pixels_CHW[:, *inside], valid_CHW = self._window(row0, col0, row1, col1)
            valid_HW[inside] = True if valid_CHW is None else valid_CHW.all(axis=0)
        return pixels_CHW, valid_HW

    def _remap(self, grid: Grid, row: int, col: int, height: int, width: int, resampling: str) -> tuple[Array, Mask]:
        """The window, put together from blocks that each need a small window of the file."""
        way = remap_between(self.grid, grid)
        pixels_CHW = np.zeros((self.num_bands, height, width), self.dtype)
        valid_HW = np.zeros((height, width), np.bool_)
        for top in range(0, height, way.block_px):
            for left in range(0, width, way.block_px):
                rows = slice(top, min(top + way.block_px, height))
                cols = slice(left, min(left + way.block_px, width))
                self._remap_block(
                    way, row + top, col + left, resampling, pixels_CHW[:, rows, cols], valid_HW[rows, cols]
                )
        return pixels_CHW, valid_HW

    def _remap_block(self, way: Remap, row: int, col: int, resampling: str, pixels_CHW: Array, valid_HW: Mask) -> None:
        """Fill a block's pixels and mask, which come as zeros; its top-left pixel on the target is (row, col)."""
        places = way.footprint(row, col, *valid_HW.shape)
        inside_HW = places.within(self.grid.height, self.grid.width)
        box = places.box(inside_HW, 1 + math.ceil(max(way.reach)), self.grid.height, self.grid.width)
        if box is None:
            return
        height, width = valid_HW.shape
        if max(box[2] - box[0], box[3] - box[1]) > MAX_WINDOW_PX and max(height, width) > 1:
            # Across the antimeridian or around a pole neighbours lie far apart: ever smaller parts do not.
            for rows in (slice(None, (height + 1) // 2), slice((height + 1) // 2, None)):
                for cols in (slice(None, (width + 1) // 2), slice((width + 1) // 2, None)):
                    part = valid_HW[rows, cols]
                    if part.size:
                        at = row + (rows.start or 0), col + (cols.start or 0)
                        self._remap_block(way, *at, resampling, pixels_CHW[:, rows, cols], part)
            return
        row0, col0, row1, col1 = box
        source_CHW, has_data_CHW = self._window(row0, col0, row1, col1)
        if resampling == "nearest":
            index_HW = nearest_index(places, row0, col0, row1 - row0, col1 - col0)
            for band, plane in enumerate(source_CHW):
                pixels_CHW[band] = plane.ravel().take(index_HW)
        else:
            for band, plane in enumerate(bilinear(source_CHW, has_data_CHW, places, row0, col0, way.reach)):
                pixels_CHW[band] = plane
        valid_HW[...] = inside_HW
        if has_data_CHW is not None:
            # A pixel has data where the source's pixel under its centre has: no band grows or shrinks.
            index_HW = nearest_index(places, row0, col0, row1 - row0, col1 - col0)
            valid_HW &= has_data_CHW.all(axis=0).ravel().take(index_HW)

    def _window(self, row0: int, col0: int, row1: int, col1: int) -> tuple[Array, Mask | None]:
        """(pixels C × H × W, which of them have data, None for all) of a window within the file."""
        dataset = open_once(self.path)
        window = Window(col0, row0, col1 - col0, row1 - row0)
        bands = list(range(1, self.num_bands + 1))
        pixels_CHW = dataset.read(bands, window=window)
        finite = pixels_CHW.dtype.kind != "f" or np.isfinite(pixels_CHW)
        flags = dataset.mask_flag_enums[: self.num_bands]
        if all(flag == [MaskFlags.all_valid] for flag in flags):
            valid_CHW = finite
        elif pixels_CHW.dtype.kind in "iu" and all(flag == [MaskFlags.nodata] for flag in flags):
            # As GDAL would say, without reading twice.
            valid_CHW = np.stack(
                [_differs(plane, value) for plane, value in zip(pixels_CHW, self.nodatas, strict=True)]
            )
        else:
            valid_CHW = (dataset.read_masks(bands, window=window) > 0) & finite
        if self._quality is not None:
            quality, rule = self._quality
            valid_CHW = np.broadcast_to(valid_CHW, pixels_CHW.shape) & rule.good(
                quality._window(row0, col0, row1, col1)[0][0]
            )
        return pixels_CHW, None if np.all(valid_CHW) else valid_CHW

    def _warp(self, grid: Grid, row: int, col: int, height: int, width: int, resampling: str) -> tuple[Array, Mask]:
        """The window by GDAL's exact, slower way, for the methods that `remap` does not have."""
        window = Window(col, row, width, height)
        parts = []
        for bands in self._groups:
            nodatas = {band: self.nodatas[band - 1] for band in bands}
            document = warped_document(self.path, self.grid, grid, self.dtype, nodatas, self.alpha, resampling)
            parts.append(open_once(document).read(window=window))
        pixels_CHW = np.concatenate([part[:-1] for part in parts])
        valid_HW = np.logical_and.reduce([_finite(pixels_CHW), *(part[-1] > 0 for part in parts)])
        return pixels_CHW, valid_HW

    @property
    def _groups(self) -> list[tuple[int, ...]]:
        """Bands to warp together: with a nodata value each on its own, as GDAL merges the masks of several bands."""
        bands = range(1, self.num_bands + 1)
        return [tuple(bands)] if set(self.nodatas) == {None} else [(band,) for band in bands]


_OPEN: OrderedDict[tuple[int, str], Any] = OrderedDict()


def open_once(name: Path | str) -> Any:
    """The data set of a file or virtual raster, open in this process; the ones used last stay open."""
    # A forked child shares the parent's file offsets, so it must open its own.
    key = (os.getpid(), str(name))
    if key not in _OPEN:
        _OPEN[key] = rasterio.open(name)
        while len(_OPEN) > _MOST_OPEN:
            _, oldest = _OPEN.popitem(last=False)
            oldest.close()
    _OPEN.move_to_end(key)
    return _OPEN[key]


def _probe(dataset: Any) -> None:
    """Read the first and last pixel of each band: a file cut short shows here instead of hours later."""
    for row, col in {(0, 0), (dataset.height - 1, dataset.width - 1)}:
        dataset.read(window=Window(col, row, 1, 1))


def _differs(plane_HW: Array, value: float | None) -> Mask:
    """Where an integer band is not the value; everywhere when its type cannot hold it."""
    limits = np.iinfo(plane_HW.dtype)
    if value is None or not value.is_integer() or not limits.min <= value <= limits.max:
        return np.ones(plane_HW.shape, np.bool_)
    return np.asarray(plane_HW != plane_HW.dtype.type(value))


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
