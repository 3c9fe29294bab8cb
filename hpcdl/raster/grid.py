"""A grid of pixels on the ground: its coordinate system, where its corner lies and how many pixels it has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform_bounds

from hpcdl.errors import UsageError

Transform = tuple[float, float, float, float, float, float]
Bounds = tuple[float, float, float, float]

# Two grids count as one when no corner is further apart than this: far below what changes a class, far above rounding.
_TOLERANCE_PX = 0.01


@lru_cache(maxsize=64)
def parse_crs(text: str) -> CRS:
    """A coordinate system from WKT, "EPSG:32612" or a PROJ string.

    Raises:
        UsageError: not a coordinate system that PROJ knows.
    """
    try:
        return CRS.from_user_input(text)
    except Exception as error:  # rasterio raises CRSError or a plain CPLE error, depending on how the text is wrong
        raise UsageError(f"{text!r} is not a coordinate system (give one such as EPSG:32612): {error}") from None


@dataclass(frozen=True)
class Grid:
    """Pixels on the ground.

    `crs` is WKT. `transform` is affine (a, b, c, d, e, f): x = a·col + b·row + c, y = d·col + e·row + f, where whole
    numbers are pixel corners.
    """

    crs: str
    transform: Transform
    height: int
    width: int

    @classmethod
    def from_dataset(cls, dataset: Any) -> Grid:
        """The grid of an open rasterio data set that has a CRS."""
        a, b, c, d, e, f = tuple(dataset.transform)[:6]
        return cls(dataset.crs.to_wkt(), (a, b, c, d, e, f), dataset.height, dataset.width)

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Grid:
        """The grid of a manifest's `grid` entry; further keys (such as chip_px) are left alone."""
        a, b, c, d, e, f = (float(number) for number in entries["transform"])
        return cls(str(entries["crs"]), (a, b, c, d, e, f), int(entries["height"]), int(entries["width"]))

    def to_json(self) -> dict[str, Any]:
        """The `grid` entry of a manifest."""
        return {"crs": self.crs, "transform": list(self.transform), "height": self.height, "width": self.width}

    @property
    def affine(self) -> Affine:
        """The transform as rasterio wants it."""
        return Affine(*self.transform)

    def to_map(self, col: float, row: float) -> tuple[float, float]:
        """Map (x, y) of a place in pixels; whole numbers are pixel corners."""
        a, b, c, d, e, f = self.transform
        return a * col + b * row + c, d * col + e * row + f

    def to_pixel(self, x: float, y: float) -> tuple[float, float]:
        """(col, row), fractional, of a place on the map."""
        a, b, c, d, e, f = tuple(~self.affine)[:6]
        return a * x + b * y + c, d * x + e * y + f

    @property
    def bounds(self) -> Bounds:
        """(min x, min y, max x, max y) of the outer pixel corners, for rotated grids the box around them."""
        corners = [self.to_map(col, row) for col in (0, self.width) for row in (0, self.height)]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def bounds_in(self, crs: str) -> Bounds:
        """The bounds in another coordinate system, edges densified.

        Raises:
            UsageError: PROJ cannot carry the bounds over.
        """
        try:
            # 21 points an edge: the GDAL default; an edge between them bulges by far less than a pixel.
            left, bottom, right, top = transform_bounds(
                parse_crs(self.crs), parse_crs(crs), *self.bounds, densify_pts=21
            )
        except Exception as error:
            raise UsageError(
                f"cannot transform {self.bounds} from {self.name} to {parse_crs(crs).to_string()}: {error}"
            ) from None
        return left, bottom, right, top

    @property
    def name(self) -> str:
        """The coordinate system in few words, for messages: EPSG:32612, or the start of its WKT."""
        text: str = parse_crs(self.crs).to_string()
        return text if len(text) <= 60 else text[:57] + "…"

    @property
    def pixel_size(self) -> float:
        """Height and width of a pixel in units of the coordinate system (metres, mostly): the smaller one of both."""
        a, b, _, d, e, _ = self.transform
        return min(math.hypot(a, d), math.hypot(b, e))

    def window_transform(self, row: float, col: float) -> Transform:
        """The transform of a window whose top-left pixel is (row, col)."""
        a, b, c, d, e, f = self.transform
        return a, b, a * col + b * row + c, d, e, d * col + e * row + f

    def window(self, row: int, col: int, height: int, width: int) -> Grid:
        """The part of this grid with top-left pixel (row, col); may reach over the edges."""
        return Grid(self.crs, self.window_transform(row, col), height, width)

    def pixel_box(self, bounds: Bounds) -> tuple[float, float, float, float]:
        """(row0, col0, row1, col1), fractional, of the box around `bounds`, which are in this grid's CRS."""
        left, bottom, right, top = bounds
        cols, rows = zip(*(self.to_pixel(x, y) for x in (left, right) for y in (bottom, top)), strict=True)
        return min(rows), min(cols), max(rows), max(cols)

    def covering(self, bounds: Bounds) -> Grid:
        """A grid on this grid's pixels, of whole pixels, that covers `bounds`; may reach over this grid's edges."""
        row0, col0, row1, col1 = self._whole(self.pixel_box(bounds))
        return self.window(row0, col0, max(1, row1 - row0), max(1, col1 - col0))

    def cropped(self, bounds: Bounds) -> Grid | None:
        """The part of this grid that touches `bounds` (in this grid's CRS), whole pixels; None when none does."""
        row0, col0, row1, col1 = self._whole(self.pixel_box(bounds))
        row0, col0, row1, col1 = max(row0, 0), max(col0, 0), min(row1, self.height), min(col1, self.width)
        return self.window(row0, col0, row1 - row0, col1 - col0) if row1 > row0 and col1 > col0 else None

    @staticmethod
    def _whole(box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
        row0, col0, row1, col1 = box
        # An edge that lies on a pixel corner but for rounding takes no further pixel.
        return (
            math.floor(row0 + _TOLERANCE_PX),
            math.floor(col0 + _TOLERANCE_PX),
            math.ceil(row1 - _TOLERANCE_PX),
            math.ceil(col1 - _TOLERANCE_PX),
        )

    def offset_in(self, other: Grid) -> tuple[int, int] | None:
        """(row, col) in `other` of this grid's top-left pixel when both share their pixels, else None."""
        if self.crs != other.crs and parse_crs(self.crs) != parse_crs(other.crs):
            return None
        col, row = other.to_pixel(self.transform[2], self.transform[5])
        whole_row, whole_col = round(row), round(col)
        corners = ((0, 0), (self.width, 0), (0, self.height))
        ends = [other.to_pixel(*self.to_map(x, y)) for x, y in corners]
        wanted = [(whole_col + x, whole_row + y) for x, y in corners]
        return (whole_row, whole_col) if float(np.abs(np.subtract(ends, wanted)).max()) < _TOLERANCE_PX else None

    def same_as(self, other: Grid) -> bool:
        """Whether both are the same pixels: equal size and CRS, corners within 0.01 pixel."""
        return (self.height, self.width) == (other.height, other.width) and self.offset_in(other) == (0, 0)
