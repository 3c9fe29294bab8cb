"""Where tiles of one size lie in a picture."""

from __future__ import annotations


def tiles_of(height: int, width: int, size: tuple[int, int], stride: tuple[int, int]) -> list[tuple[int, int]]:
    """Top left corners (row, column) of tiles that cover a picture, row by row.

    The last tile of a row or column is moved back to the border, so that nothing is left over; in a picture smaller than a
    tile it begins at 0.
    """
    return [(row, col) for row in _starts(height, size[0], stride[0]) for col in _starts(width, size[1], stride[1])]


def _starts(length: int, size: int, stride: int) -> list[int]:
    last = max(length - size, 0)
    return [*range(0, last, stride), last]
