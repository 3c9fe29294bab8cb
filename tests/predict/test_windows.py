from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.predict.windows import coverage, cut_strips, default_window, starts, taper


def test_last_window_slides_inward() -> None:
    assert starts(100, 32, 0.5) == (0, 16, 32, 48, 64, 68)
    assert starts(96, 32, 0.0) == (0, 32, 64)
    assert starts(20, 32, 0.5) == (0,)


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.5])
def test_neighbours_add_up_to_one(overlap: float) -> None:
    window = 40
    firsts = range(0, 400, round(window * (1 - overlap)))
    total = coverage(440, firsts, taper(window, overlap))
    assert np.allclose(total[window : 400 - window], 1, atol=1e-6)


@given(
    st.integers(1, 500), st.integers(4, 90), st.floats(0, 0.9), st.integers(1, 9)
)  # fmt: skip
def test_strips_finish_every_row_once_with_all_its_windows(
    length: int, window: int, overlap: float, ranks: int
) -> None:
    tops = starts(length, window, overlap)
    assert coverage(length, tops, taper(window, overlap)).min() > 0
    strips = cut_strips(length, tops, window, ranks)
    assert len(strips) == ranks
    assert [row for strip in strips for row in range(strip.row0, strip.row1)] == list(range(length))
    for strip in strips:
        if strip.row0 < strip.row1:
            wanted = tuple(top for top in tops if top < strip.row1 and top + window > strip.row0)
            assert strip.tops == wanted


def test_default_window_is_no_larger_than_the_scene() -> None:
    assert default_window(128, 2000, 3000) == 256
    assert default_window(300, 2000, 3000) == 320
    assert default_window(128, 50, 100) == 128
