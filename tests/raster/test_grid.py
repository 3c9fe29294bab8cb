from __future__ import annotations

import pytest
from rasterio.crs import CRS

from hpcdl.errors import UsageError
from hpcdl.raster.grid import Grid, parse_crs
from tests.generators import UTM, image_affine

WKT = CRS.from_string(UTM).to_wkt()
GRID = Grid(WKT, tuple(image_affine())[:6], 100, 80)


def test_json_round_trip_keeps_the_grid_and_ignores_other_keys():
    assert Grid.from_json({**GRID.to_json(), "chip_px": 64}) == GRID


def test_window_transform_moves_the_corner():
    assert GRID.window_transform(2, 3) == (30, 0, 300_090, 0, -30, 4_149_940)


def test_covering_snaps_outward_to_the_pixels():
    left, _, _, top = GRID.bounds
    part = GRID.covering((left - 1, top - 61, left + 31, top - 59))
    assert part.offset_in(GRID) == (1, -1)
    assert (part.height, part.width) == (2, 3)


def test_covering_its_own_bounds_is_the_grid_itself():
    assert GRID.covering(GRID.bounds).same_as(GRID)


def test_cropped_stays_inside_and_is_none_outside():
    left, bottom, right, top = GRID.bounds
    part = GRID.cropped((right - 45, bottom - 1000, right + 1000, bottom + 15))
    assert part is not None
    assert part.offset_in(GRID) == (99, 78)
    assert (part.height, part.width) == (1, 2)
    assert GRID.cropped((right + 10, bottom, right + 20, top)) is None
    assert left < right


def test_same_as_allows_rounding_and_nothing_more():
    a, b, c, d, e, f = GRID.transform
    assert GRID.same_as(Grid(WKT, (a + 1e-9, b, c - 1e-6, d, e, f), 100, 80))
    assert not GRID.same_as(Grid(WKT, (a, b, c + 15, d, e, f), 100, 80))
    assert not GRID.same_as(Grid(WKT, (a * 1.01, b, c, d, e, f), 100, 80))
    assert not GRID.same_as(Grid(WKT, GRID.transform, 100, 81))
    assert not GRID.same_as(Grid(CRS.from_epsg(32613).to_wkt(), GRID.transform, 100, 80))


def test_unknown_crs_is_refused():
    with pytest.raises(UsageError, match="EPSG:999999"):
        parse_crs("EPSG:999999")
