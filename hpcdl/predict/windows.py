"""Where windows lie, how they fade into each other, and which rank computes which: pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


def default_window(chip_px: int, height: int, width: int) -> int:
    """The training chip, 256 at least (more context, fewer seams), but no larger than the scene: that would be padding.

    A multiple of 32, so that poolings come out even.
    """
    return min(_multiple(max(chip_px, 256)), _multiple(max(height, width)))


def _multiple(size: int) -> int:
    return 32 * math.ceil(size / 32)


def starts(length: int, window: int, overlap: float) -> tuple[int, ...]:
    """First pixels of the windows along one axis.

    The last window slides inward, so that none reaches over the end; an axis shorter than a window has one, at 0.

    Args:
        length, window: in pixels.
        overlap: part of a window that is shared with the next, 0 to below 1.
    """
    if length <= window:
        return (0,)
    stride = max(1, round(window * (1 - overlap)))
    return (*range(0, length - window, stride), length - window)


def taper(window: int, overlap: float) -> npt.NDArray[np.float32]:
    """Weights of a window's pixels along one axis: 1 in its middle, falling to (not onto) 0 over the shared margins.

    The slope is a half cosine; with an overlap of 0.5 or more that is a Hann window. Neighbours on a regular stride of
    (1 − overlap) · window add up to 1 for overlaps up to 0.5.
    """
    margin = min(window - max(1, round(window * (1 - overlap))), window // 2)
    weights = np.ones(window, np.float32)
    if margin:
        # Half a pixel in, so that no weight is 0: a pixel at the scene's edge may have this window only.
        slope = np.sin(np.pi / 2 * (np.arange(margin) + 0.5) / margin) ** 2
        weights[:margin], weights[window - margin :] = slope, slope[::-1]
    return weights


def coverage(length: int, firsts: Sequence[int], weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Sum of all windows' weights at each pixel of an axis."""
    total = np.zeros(length, np.float32)
    for first in firsts:
        part = total[first : first + len(weights)]
        part += weights[: len(part)]
    return total


@dataclass(frozen=True)
class Strip:
    """The rows of windows that one rank finishes.

    Attributes:
        tops: first pixel row of all rows of windows that have to be computed, some only for their share in this strip.
        row0, row1: half-open range of pixel rows that this strip yields; empty for a rank without work.
    """

    tops: tuple[int, ...]
    row0: int
    row1: int


def cut_strips(length: int, tops: Sequence[int], window: int, num_strips: int) -> list[Strip]:
    """Share rows of windows out, from top to bottom, as evenly as whole rows go.

    A strip ends where the next one's first window begins. It also computes the windows above that reach into it, so that
    every pixel is the sum of the same terms in the same order, however many strips there are.
    """
    strips = []
    for part in np.array_split(np.arange(len(tops)), num_strips):
        if not len(part):
            strips.append(Strip((), length, length))
            continue
        first, last = int(part[0]), int(part[-1])
        row0 = tops[first]
        row1 = tops[last + 1] if last + 1 < len(tops) else length
        strips.append(Strip(tuple(top for top in tops[: last + 1] if top + window > row0), row0, row1))
    return strips
