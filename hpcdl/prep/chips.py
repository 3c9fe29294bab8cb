"""Chips: the square windows of a scene that become samples. Chips and rectangles are in pixels of one grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# Half-open: (row0, col0, row1, col1).
Rect = tuple[int, int, int, int]
Chips = npt.NDArray[np.int32]


def offsets(start: int, stop: int, chip_px: int, stride_px: int) -> list[int]:
    """Where chips begin along one axis: every `stride_px`, the last one slid inward to end at `stop`.

    Empty when the axis is shorter than a chip.
    """
    last = stop - chip_px
    if last < start:
        return []
    return [*range(start, last, stride_px), last]


def chips_in(rects: Iterable[Rect], chip_px: int, stride_px: int) -> Chips:
    """Top-left (row, col) of each chip that lies within one of the rectangles, N × 2, row by row, each once.

    In each rectangle the last row and column slide inward, so no pixel is lost and some repeat.
    """
    found = [np.empty((0, 2), np.int32)]
    for row0, col0, row1, col1 in rects:
        rows, cols = offsets(row0, row1, chip_px, stride_px), offsets(col0, col1, chip_px, stride_px)
        found.append(
            np.stack([np.repeat(rows, len(cols)), np.tile(cols, len(rows))], axis=1).reshape(-1, 2).astype(np.int32)
        )
    chips = np.concatenate(found)
    chips = chips[np.lexsort((chips[:, 1], chips[:, 0]))]
    first = np.ones(len(chips), np.bool_)
    first[1:] = (np.diff(chips, axis=0) != 0).any(axis=1)
    return chips[first]


def near(chips: Chips, chip_px: int, rects: Sequence[Rect], distance_px: int) -> npt.NDArray[np.bool_]:
    """Which chips are closer than `distance_px` to one of the rectangles, along rows and along columns.

    A chip that touches a rectangle is at distance 0. With `distance_px` 0 no chip is near.
    """
    if distance_px == 0 or not rects or not len(chips):
        return np.zeros(len(chips), np.bool_)
    # The rectangles' edges cut the plane into cells that are wholly inside or outside; sums over them from the top left
    # tell how many inside cells a chip with its surroundings meets, however many rectangles there are.
    row_edges = np.unique([edge for rect in rects for edge in (rect[0], rect[2])])
    col_edges = np.unique([edge for rect in rects for edge in (rect[1], rect[3])])
    inside = np.zeros((len(row_edges), len(col_edges)), np.int64)
    places = np.searchsorted(row_edges, [(rect[0], rect[2]) for rect in rects])
    sides = np.searchsorted(col_edges, [(rect[1], rect[3]) for rect in rects])
    for (top, bottom), (left, right) in zip(places.tolist(), sides.tolist(), strict=True):
        inside[top:bottom, left:right] = 1
    sums = np.zeros((len(row_edges) + 1, len(col_edges) + 1), np.int64)
    sums[1:, 1:] = inside.cumsum(axis=0).cumsum(axis=1)
    reach = chip_px + distance_px
    first_row, last_row = _cells(row_edges, chips[:, 0] - distance_px, chips[:, 0] + reach)
    first_col, last_col = _cells(col_edges, chips[:, 1] - distance_px, chips[:, 1] + reach)
    met = sums[last_row, last_col] - sums[first_row, last_col] - sums[last_row, first_col] + sums[first_row, first_col]
    return np.asarray((met > 0) & (first_row < last_row) & (first_col < last_col))


def _cells(edges: npt.NDArray[Any], start: npt.NDArray[Any], stop: npt.NDArray[Any]) -> tuple[Any, Any]:
    """Half-open range of the cells between edges that the open interval from `start` to `stop` meets."""
    first = np.searchsorted(edges, start, side="right") - 1
    return np.maximum(first, 0), np.searchsorted(edges, stop, side="left")


def subtract(rect: Rect, hole: Rect) -> list[Rect]:
    """What is left of a rectangle without the hole: up to four rectangles, the top and bottom ones of full width."""
    row0, col0, row1, col1 = rect
    top, left, bottom, right = max(row0, hole[0]), max(col0, hole[1]), min(row1, hole[2]), min(col1, hole[3])
    if top >= bottom or left >= right:
        return [rect]
    parts = [(row0, col0, top, col1), (top, col0, bottom, left), (top, right, bottom, col1), (bottom, col0, row1, col1)]
    return [part for part in parts if area(part) > 0]


def merge(rects: Sequence[Rect]) -> list[Rect]:
    """The same pixels in fewer rectangles: neighbours of equal height are joined, then those of equal width."""
    wide: list[Rect] = []
    for row0, col0, row1, col1 in sorted(rects, key=lambda rect: (rect[0], rect[2], rect[1])):
        if wide and wide[-1][0] == row0 and wide[-1][2] == row1 and wide[-1][3] == col0:
            wide[-1] = (row0, wide[-1][1], row1, col1)
        else:
            wide.append((row0, col0, row1, col1))
    tall: list[Rect] = []
    for row0, col0, row1, col1 in sorted(wide, key=lambda rect: (rect[1], rect[3], rect[0])):
        if tall and tall[-1][1] == col0 and tall[-1][3] == col1 and tall[-1][2] == row0:
            tall[-1] = (tall[-1][0], col0, row1, col1)
        else:
            tall.append((row0, col0, row1, col1))
    return sorted(tall)


def area(rect: Rect) -> int:
    """Pixels of a rectangle, 0 for an empty one."""
    return max(0, rect[2] - rect[0]) * max(0, rect[3] - rect[1])
