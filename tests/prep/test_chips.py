from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdl.prep.chips import area, chips_in, merge, near, offsets, subtract

rects = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 9), st.integers(1, 9)).map(
    lambda r: (r[0], r[1], r[0] + r[2], r[1] + r[3])
)


def painted(parts, size=24):
    canvas = np.zeros((size, size), int)
    for row0, col0, row1, col1 in parts:
        canvas[row0:row1, col0:col1] += 1
    return canvas


def test_the_last_chip_slides_inward():
    assert offsets(0, 100, 40, 40) == [0, 40, 60]
    assert offsets(10, 90, 40, 40) == [10, 50]
    assert offsets(0, 39, 40, 40) == []
    assert offsets(5, 45, 40, 7) == [5]


def test_chips_come_row_by_row_and_once():
    chips = chips_in([(0, 0, 10, 20), (0, 10, 10, 25)], 10, 10)
    assert chips.tolist() == [[0, 0], [0, 10], [0, 15]]
    assert chips.dtype == np.int32
    assert chips_in([(0, 0, 5, 5)], 10, 10).shape == (0, 2)


@given(rects, st.integers(1, 6), st.integers(1, 8))
def test_chips_cover_a_rectangle_and_stay_inside(rect, chip_px, stride_px):
    stride_px = min(stride_px, chip_px)
    canvas = painted([(r, c, r + chip_px, c + chip_px) for r, c in chips_in([rect], chip_px, stride_px).tolist()])
    inside = painted([rect]).astype(bool)
    assert not canvas[~inside].any()
    if min(rect[2] - rect[0], rect[3] - rect[1]) >= chip_px:
        assert canvas[inside].all()


@given(rects, rects)
def test_subtract_leaves_exactly_the_rest(rect, hole):
    canvas = painted(subtract(rect, hole))
    expected = painted([rect])
    expected[hole[0] : hole[2], hole[1] : hole[3]] = 0
    np.testing.assert_array_equal(canvas, expected)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), unique=True))
def test_merge_keeps_the_pixels(cells):
    blocks = [(row * 3, col * 3, row * 3 + 3, col * 3 + 3) for row, col in cells]
    merged = merge(blocks)
    np.testing.assert_array_equal(painted(merged), painted(blocks))
    assert len(merged) <= len(blocks)
    assert sum(map(area, merged)) == 9 * len(blocks)


@settings(max_examples=40)
@given(rects, st.integers(1, 5), st.integers(0, 6))
def test_near_is_what_counting_pixels_says(rect, chip_px, distance_px):
    chips = chips_in([(0, 0, 20, 20)], chip_px, 1)
    row0, col0, row1, col1 = (edge + 20 for edge in rect)  # shifted, so that the grown one may reach outside
    # Closer than n pixels is the same as meeting the rectangle grown by n pixels.
    grown = np.zeros((80, 80), bool)
    grown[row0 - distance_px : row1 + distance_px, col0 - distance_px : col1 + distance_px] = distance_px > 0
    meets = [grown[20 + row : 20 + row + chip_px, 20 + col : 20 + col + chip_px].any() for row, col in chips.tolist()]
    np.testing.assert_array_equal(near(chips, chip_px, [rect], distance_px), meets)
