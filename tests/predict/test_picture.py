from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib import image as pictures

from hpcdl.predict.views import shown_bands, thinning
from hpcdl.raster.grid import Grid
from tests.predict.conftest import CLASSES, Case


@pytest.mark.parametrize(
    ("names", "bands"),
    [
        (["landsat_b2", "landsat_b3", "landsat_b4", "landsat_b5"], (2, 1, 0)),
        (["x_b1", "x_b2", "x_b3", "x_b4", "x_b5"], (3, 2, 1)),
        (["B05", "B04", "B03", "B02"], (1, 2, 3)),
        (["red", "nir", "blue", "green"], (0, 3, 2)),
        (["first", "second", "third", "fourth"], (2, 1, 0)),
        (["band", "other"], (0,)),
    ],
)
def test_bands_are_picked_by_name(names: list[str], bands: tuple[int, ...]) -> None:
    assert shown_bands(names) == bands


def test_thinning_bounds_the_longer_side() -> None:
    assert thinning(Grid("EPSG:32612", (30, 0, 0, 0, -30, 0), 1400, 200), 1400) == 1
    assert thinning(Grid("EPSG:32612", (30, 0, 0, 0, -30, 0), 200, 40_000), 1400) == 29


def test_the_picture_shows_the_classes_in_their_colours(make_case: Callable[..., Case]) -> None:
    case = make_case()
    assert case.predict(labels=str(case.labels), region="test")[0] == 0
    pixels_HWC = np.rint(pictures.imread(case.folder / "out/map.png")[..., :3] * 255).astype(int)
    assert max(pixels_HWC.shape) < 2600
    for entry in CLASSES:
        share = (pixels_HWC == entry["color"]).all(axis=-1).mean()
        assert share > 0.05, entry["name"]  # a third of two of three panels


def test_thinned_views_show_the_same_place(make_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch) -> None:
    """A scene larger than the picture is thinned: nothing fails, and the picture's size does not follow the scene's."""
    monkeypatch.setattr("hpcdl.predict.picture.LONGEST_PX", 40)
    case = make_case()
    assert case.predict(labels=str(case.labels))[0] == 0
    assert (case.folder / "out/map.png").stat().st_size > 10_000
