"""How far the pixels of two splits are apart: what a data set certifies, and what is measured again to check it."""

from __future__ import annotations

import math

import numpy as np

from hpcdl.prep.chips import Chips

# Neighbours looked up at once: bounds the memory, not the result.
_AT_ONCE = 20_000


def smallest_distance(one: Chips, other: Chips, chip_px: int) -> float | None:
    """Smallest distance between the centres of a pixel of `one` and a pixel of `other`, in pixels.

    0 where chips share a pixel, 1 where they touch; with n free pixels between them n + 1.

    Args:
        one, other: top-left (row, col) of chips, N × 2.
        chip_px: height and width of the chips.

    Returns:
        None when there are no chips on one of the sides.
    """
    if not len(one) or not len(other):
        return None
    from scipy.spatial import cKDTree  # takes a while to import, and workers never need it

    if len(one) < len(other):
        one, other = other, one
    tree = cKDTree(one)
    # Chips are squares, so the nearest by the larger of both differences bounds the true distance: from below as it is,
    # from above times the square root of two.
    nearest, _ = tree.query(other, p=math.inf)
    steps = np.maximum(nearest - (chip_px - 1), 0)
    low = float(steps.min())
    best = math.inf
    for bound in (low, low * math.sqrt(2)):
        candidates = other[steps <= bound]
        for start in range(0, len(candidates), _AT_ONCE):
            some = candidates[start : start + _AT_ONCE]
            around = tree.query_ball_point(some, bound + chip_px - 1, p=math.inf)
            pairs = np.concatenate([np.asarray(found, np.int64) for found in around])
            difference = np.abs(one[pairs] - np.repeat(some, [len(found) for found in around], axis=0))
            apart = np.maximum(difference - (chip_px - 1), 0)
            best = min(best, float(np.hypot(apart[:, 0], apart[:, 1]).min()))
        if best == low:
            break
    return best
