"""Where a grid's pixels lie on another grid, and interpolation there: what warps scenes at the speed of their decoding.

Coordinates are worked out exactly by PROJ on a sparse lattice of the target's pixels and interpolated between (to 2e-5
pixel); OpenCV's remap interpolates the values. Both depend on the target pixel alone, never on
the window that is read, so tiles put together equal one read of the whole, bit for bit: the lattice lies on the target's own
pixels, and places are rounded to 1/4096 pixel, which float32 carries exactly wherever a window begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from rasterio.warp import transform

from hpcdl.raster.grid import Grid, parse_crs

# A worker is one process of one CPU.
cv2.setNumThreads(1)

Array = npt.NDArray[Any]
Places = npt.NDArray[np.float64]

# Target pixels from one node of the lattice to the next: the largest for which interpolation is good to _LATTICE_PX.
_STEPS = (64, 32, 16, 8, 4, 2, 1)
_LATTICE_PX = 2e-5
_CELLS_TRIED = 5
# A cell in whose middle interpolation is further off than this is worked out pixel by pixel.
_SMOOTH_PX = 1e-3
_QUANTUM = 4096
# A source window no wider than this leaves float32 (24 bits) the 12 bits of the quantum.
MAX_WINDOW_PX = 2048
# GDAL's own threshold: a target pixel up to 5 % larger than the source's is interpolated between four pixels.
_SAME_SIZE = 0.95
# OpenCV 5 interpolates these exactly; other types it would round to 1/32 pixel.
_NATIVE = (np.uint8, np.uint16, np.float32)
_WIDE = (np.float64, np.int32, np.uint32)


@dataclass(frozen=True)
class Footprint:
    """Where a window of target pixels lies on the source: whole numbers are pixel corners, not finite where it does not."""

    rows_HW: Places
    cols_HW: Places

    def box(
        self, inside_HW: npt.NDArray[np.bool_], margin_px: int, height: int, width: int
    ) -> tuple[int, int, int, int] | None:
        """(row0, col0, row1, col1) of the pixels around the places inside a source of that size; None when there are none."""
        whole = bool(inside_HW.all())
        if not whole and not inside_HW.any():
            return None
        rows, cols = (self.rows_HW, self.cols_HW) if whole else (self.rows_HW[inside_HW], self.cols_HW[inside_HW])
        return (
            max(math.floor(rows.min()) - margin_px, 0),
            max(math.floor(cols.min()) - margin_px, 0),
            min(math.floor(rows.max()) + 1 + margin_px, height),
            min(math.floor(cols.max()) + 1 + margin_px, width),
        )

    def within(self, height: int, width: int) -> npt.NDArray[np.bool_]:
        """Which places lie on a source of that size."""
        with np.errstate(invalid="ignore"):
            held: npt.NDArray[np.bool_] = (
                (self.rows_HW >= 0) & (self.rows_HW < height) & (self.cols_HW >= 0) & (self.cols_HW < width)
            )
        return held


class Remap:
    """The way from a target grid's pixels to a source grid's.

    Attributes:
        reach: (rows, columns) in source pixels over which bilinear interpolation weighs: 1 between neighbours, more where
            a target pixel is larger than a source pixel, so that none is skipped.
        block_px: windows of the target up to this size have a source window that `interpolate` can serve.
    """

    def __init__(self, source: Grid, target: Grid) -> None:
        self.source, self.target = source, target
        self._crs = (parse_crs(target.crs), parse_crs(source.crs))
        self._same_crs = self._crs[0] == self._crs[1]
        self._step = self._choose_step()
        per_row, per_col = self._scales()
        self.reach = tuple(1.0 if size * _SAME_SIZE <= 1 else size for size in (per_row, per_col))
        largest = (MAX_WINDOW_PX / 2 - 8 * max(self.reach)) / max(per_row, per_col, 1)
        self.block_px = max(8, min(512, 2 ** int(math.log2(max(largest, 1)))))
        self._last: tuple[tuple[int, int, int, int], Footprint] | None = None

    def footprint(self, row: int, col: int, height: int, width: int) -> Footprint:
        """Where the centres of a window's pixels lie; the last answer is kept, for the further files of a scene."""
        key = (row, col, height, width)
        last = self._last
        if last is None or last[0] != key:
            cells = (
                np.arange(row // self._step, (row + height - 1) // self._step + 2),
                np.arange(col // self._step, (col + width - 1) // self._step + 2),
            )
            nodes = self._nodes(*cells)
            with np.errstate(invalid="ignore"):  # infinite where PROJ has no answer
                found = [self._spread(plane, row, col, height, width) for plane in nodes]
                rough = self._rough(nodes, *cells)
                if rough.any():
                    self._make_exact(found, rough, row, col)
            last = self._last = key, Footprint(*found)
        return last[1]

    def _nodes(self, rows: Array, cols: Array) -> tuple[Places, Places]:
        """(rows, columns) on the source of lattice nodes; node n is the centre of pixel n · step."""
        col, row = np.meshgrid(cols * float(self._step) + 0.5, rows * float(self._step) + 0.5)
        return self._exact(row, col)

    def _exact(self, row: Places, col: Places) -> tuple[Places, Places]:
        """(rows, columns) on the source of places on the target; not finite where PROJ has no answer."""
        a, b, c, d, e, f = self.target.transform
        x, y = a * col + b * row + c, d * col + e * row + f
        if not self._same_crs:
            xs, ys = _transform(*self._crs, x.ravel(), y.ravel())
            x, y = np.reshape(xs, x.shape), np.reshape(ys, y.shape)
        a, b, c, d, e, f = tuple(~self.source.affine)[:6]
        with np.errstate(invalid="ignore"):
            return d * x + e * y + f, a * x + b * y + c

    def _rough(self, nodes: tuple[Places, Places], rows: Array, cols: Array) -> npt.NDArray[np.bool_]:
        """Which cells are not smooth: at a pole, at the antimeridian, at the rim of what a projection can show."""
        if self._same_crs or self._step == 1:
            return np.zeros((len(rows) - 1, len(cols) - 1), np.bool_)
        middles = self._nodes(rows[:-1] + 0.5, cols[:-1] + 0.5)
        rough = np.zeros(middles[0].shape, np.bool_)
        for corners, middle in zip(nodes, middles, strict=True):
            between = (corners[:-1, :-1] + corners[:-1, 1:] + corners[1:, :-1] + corners[1:, 1:]) / 4
            # A comparison with what is not finite is never true.
            rough |= ~(np.abs(between - middle) <= _SMOOTH_PX)
        return rough

    def _make_exact(self, found: list[Places], rough: npt.NDArray[np.bool_], row: int, col: int) -> None:
        """Work out every pixel of the cells that are rough."""
        height, width = found[0].shape
        rows, cols = np.arange(row, row + height), np.arange(col, col + width)
        inside = rough[
            (rows // self._step - row // self._step)[:, None], (cols // self._step - col // self._step)[None]
        ]
        down, across = np.nonzero(inside)
        for plane, exact in zip(found, self._exact(rows[down] + 0.5, cols[across] + 0.5), strict=True):
            plane[down, across] = exact

    def _spread(self, nodes: Places, row: int, col: int, height: int, width: int) -> Places:
        """The lattice's values at every pixel of a window, bilinear between nodes."""
        step = self._step
        rows = np.arange(row, row + height)
        above = rows // step - row // step
        lines = nodes[above] + (nodes[above + 1] - nodes[above]) * ((rows % step) / step)[:, None]
        spread = np.diff(lines, axis=1)[:, :, None] * (np.arange(step) / step)
        spread += lines[:, :-1, None]
        first = col % step
        return spread.reshape(height, -1)[:, first : first + width]

    def _choose_step(self) -> int:
        for step in _STEPS[:-1]:
            self._step = step
            if self._lattice_error() <= _LATTICE_PX:
                return step
        return _STEPS[-1]

    def _lattice_error(self) -> float:
        """Largest error in source pixels at the middles of some cells, spread over the target grid."""
        half = self._step / 2
        rows, cols = (
            np.unique(np.linspace(0, max(size // self._step - 1, 0), _CELLS_TRIED).astype(int))
            for size in (self.target.height, self.target.width)
        )
        worst = 0.0
        with np.errstate(invalid="ignore"):
            for row in rows:
                for col in cols:
                    exact = self._nodes(
                        np.array([row, row + half / self._step, row + 1]),
                        np.array([col, col + half / self._step, col + 1]),
                    )
                    for plane in exact:
                        corners = plane[::2, ::2]
                        errors = (
                            plane[1, 1] - corners.mean(),
                            plane[0, 1] - corners[0].mean(),
                            plane[1, 0] - corners[:, 0].mean(),
                        )
                        # Where PROJ has no answer there is nothing to be exact about.
                        worst = max([worst, *(abs(error) for error in errors if math.isfinite(error))])
        return worst

    def _scales(self) -> tuple[float, float]:
        """Source pixels per target pixel along the source's rows and columns, at the middle of the source."""
        back = (self._crs[1], self._crs[0])
        x, y = self.source.to_map(self.source.width / 2, self.source.height / 2)
        if not self._same_crs:
            (x,), (y,) = _transform(*back, np.array([x]), np.array([y]))
        col, row = self.target.to_pixel(x, y)
        step = self._step
        rows, cols = self._nodes(np.array([row, row + 1]) / step, np.array([col, col + 1]) / step)
        per_row = math.hypot(rows[0, 1] - rows[0, 0], rows[1, 0] - rows[0, 0])
        per_col = math.hypot(cols[0, 1] - cols[0, 0], cols[1, 0] - cols[0, 0])
        return (per_row, per_col) if math.isfinite(per_row + per_col) else (1.0, 1.0)


def _transform(source: Any, target: Any, xs: Array, ys: Array) -> tuple[Array, Array]:
    """Places in another coordinate system, one by one where PROJ refuses all because of some; NaN for those."""
    try:
        moved = transform(source, target, xs, ys)
        return np.asarray(moved[0], np.float64), np.asarray(moved[1], np.float64)
    except Exception:  # rasterio raises what GDAL's last error was, of several classes
        if len(xs) == 1:
            return np.full(1, np.nan), np.full(1, np.nan)
    half = len(xs) // 2
    parts = [_transform(source, target, xs[cut], ys[cut]) for cut in (slice(None, half), slice(half, None))]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


@lru_cache(maxsize=64)
def remap_between(source: Grid, target: Grid) -> Remap:
    """The one Remap of two grids in this process: the files of a scene share its work."""
    return Remap(source, target)


def nearest_index(footprint: Footprint, row: int, col: int, height: int, width: int) -> npt.NDArray[np.int64]:
    """For each place the flat index of the pixel that holds it, in a source window whose top-left pixel is (row, col).

    Places outside the window get one of its pixels; the caller masks them.
    """
    rows, cols = (
        np.clip(np.floor(np.nan_to_num(places, posinf=0, neginf=0)).astype(np.int64) - start, 0, size - 1)
        for places, start, size in ((footprint.rows_HW, row, height), (footprint.cols_HW, col, width))
    )
    return rows * width + cols


def bilinear(
    values_CHW: Array, valid_CHW: Array | None, footprint: Footprint, row: int, col: int, reach: tuple[float, ...]
) -> list[Array]:
    """Interpolated values H × W of each band in the source's type, of a source window whose top-left pixel is (row, col).

    Pixels that are not valid weigh nothing. Places outside the window get what its rim has; the caller masks them.

    Args:
        valid_CHW: None where all values are valid.
        reach: of the Remap; above 1 in a direction, pixels within it are weighed by a triangle (GDAL's bilinear).
    """
    rows: Array
    cols: Array
    rows, cols = footprint.rows_HW, footprint.cols_HW
    dtype = values_CHW.dtype
    kernels = None if max(reach) == 1 else [_triangle(size) for size in reach]
    if dtype.type in _WIDE:
        rows, cols = rows - (row + 0.5), cols - (col + 0.5)
    else:
        rows, cols = _quantised(rows, row), _quantised(cols, col)
    if kernels is None and valid_CHW is None and (dtype.type in _NATIVE or dtype.type in _WIDE):
        return [_rounded(_sample(plane, rows, cols), dtype) for plane in values_CHW]
    work = np.float64 if dtype.type in _WIDE else np.float32
    planes = []
    for band, values in enumerate(values_CHW):
        weight = np.ones(values.shape, work) if valid_CHW is None else valid_CHW[band].astype(work)
        plane = values.astype(work) if valid_CHW is None else np.where(valid_CHW[band], values, 0).astype(work)
        if kernels is not None:
            # Beyond the image nothing weighs, as beyond a pixel without data.
            plane, weight = _filtered(plane, kernels), _filtered(weight, kernels)
        total, share = _sample(plane, rows, cols), _sample(weight, rows, cols)
        planes.append(_rounded(np.divide(total, share, out=np.zeros_like(total), where=share > 0), dtype))
    return planes


def _filtered(plane_HW: Array, kernels: Sequence[Array]) -> Array:
    """Each value replaced by the weighted sum of those around it: kernels for rows and columns, zeros beyond the rim."""
    for axis, kernel in enumerate(kernels):
        reach = len(kernel) // 2
        padded = np.pad(plane_HW, [(reach, reach) if other == axis else (0, 0) for other in range(2)])
        # Tap by tap, as OpenCV's own filter rounds in another way at the end of a row than within it.
        total = np.zeros_like(plane_HW)
        for tap, weight in enumerate(kernel.astype(plane_HW.dtype)):
            cut = slice(tap, tap + plane_HW.shape[axis])
            total += padded[(cut, slice(None)) if axis == 0 else (slice(None), cut)] * weight
        plane_HW = total
    return plane_HW


def _quantised(places: Places, start: int) -> npt.NDArray[np.float32]:
    """Places from the centre of pixel `start` on, rounded to the quantum; those that are nowhere come far outside."""
    steps = places * _QUANTUM
    steps -= start * _QUANTUM + _QUANTUM // 2
    np.rint(steps, out=steps)
    exact = steps.astype(np.float32)
    exact *= np.float32(1 / _QUANTUM)
    if not math.isfinite(float(exact.sum())):
        np.nan_to_num(exact, copy=False, nan=-1e4, posinf=-1e4, neginf=-1e4)
    return exact


def _sample(plane_HW: Array, rows: Array, cols: Array) -> Array:
    """Values between pixel centres, which are whole numbers here; beyond the rim its values go on."""
    if plane_HW.dtype.type in _NATIVE:
        sampled: Array = cv2.remap(plane_HW, cols, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return sampled
    height, width = plane_HW.shape
    rows, cols = (
        np.clip(np.nan_to_num(part, posinf=0, neginf=0), 0, size - 1.0)
        for part, size in ((rows, height), (cols, width))
    )
    top, left = np.floor(rows).astype(np.int64), np.floor(cols).astype(np.int64)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = rows - top, cols - left
    flat = plane_HW.ravel().astype(np.float64)
    above = flat.take(top * width + left) * (1 - across) + flat.take(top * width + right) * across
    below = flat.take(bottom * width + left) * (1 - across) + flat.take(bottom * width + right) * across
    mixed: Array = above * (1 - down) + below * down
    return mixed


def _rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    if values.dtype == dtype:
        return values
    return (np.rint(values) if dtype.kind in "iu" else values).astype(dtype)


def _triangle(reach: float) -> Array:
    """The weights of whole pixels under a triangle of half-width `reach`; with reach 1 the middle one alone."""
    most = math.ceil(reach) - 1
    weights = 1 - np.abs(np.arange(-most, most + 1)) / reach
    return np.asarray(weights / weights.sum())
