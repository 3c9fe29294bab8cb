from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.prep.distance import smallest_distance

places = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=12)


def pixels(chips, chip_px):
    rows, cols = np.mgrid[0:chip_px, 0:chip_px]
    return np.concatenate([np.stack([rows.ravel() + row, cols.ravel() + col], axis=1) for row, col in chips])


@given(places, places, st.integers(1, 6))
def test_it_is_the_distance_of_the_nearest_two_pixels(one, other, chip_px):
    a, b = pixels(one, chip_px), pixels(other, chip_px)
    expected = np.sqrt(np.square(a[:, None] - b[None]).sum(axis=2)).min()
    found = smallest_distance(np.array(one, np.int32), np.array(other, np.int32), chip_px)
    assert found is not None
    np.testing.assert_allclose(found, expected)


def test_touching_chips_are_one_apart_and_nothing_is_apart_from_nothing():
    chips = np.array([[0, 0]], np.int32)
    assert smallest_distance(chips, np.array([[0, 8]], np.int32), 8) == 1
    assert smallest_distance(chips, np.array([[0, 7]], np.int32), 8) == 0
    assert smallest_distance(chips, np.empty((0, 2), np.int32), 8) is None
