"""The real scene, when the shared data are there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from hpcdl.errors import UsageError
from hpcdl.prep import landcover
from hpcdl.prep.landcover import Settings
from hpcdl.raster.scene import open_scenes

ROOT = Path(__file__).resolve().parents[2]
ZION = Path(os.environ.get("HPCDL_SHARED_DATA", ROOT.parent / "shared" / "data")) / "landcover" / "zion"
pytestmark = pytest.mark.skipif(not ZION.is_dir(), reason="the shared Zion scene is not on this machine")

SIMPLE = """
classes:
  - {code: 1, name: Water, color: "#466b9f"}
  - {code: 2, name: Developed, color: "#ab0000"}
  - {code: 3, name: Barren, color: "#b3ac9f"}
  - {code: 4, name: Forest, color: "#68ab5f"}
  - {code: 5, name: Shrubland, color: "#ccb879"}
  - {code: 6, name: Herbaceous, color: "#dfdfc2"}
  - {code: 7, name: Cultivated, color: "#dcd939"}
  - {code: 8, name: Wetlands, color: "#b8d9eb"}
"""


def settings(**changes) -> Settings:
    base = {"images": (str(ZION / "landsat_b*.tif"),), "labels": str(ZION / "nlcd2011.tif"), "test_region": "east:0.3"}
    return Settings(**{**base, "val_fraction": 0.0, **changes})


@pytest.mark.slow
def test_zion_has_fourteen_classes_on_its_own_label_grid():
    plan = landcover.plan(settings())
    assert plan.grid.same_as(plan.labels.grid)
    codes = [entry.code for entry in plan.class_map.classes]
    assert codes == [11, 21, 22, 23, 31, 41, 42, 43, 52, 71, 81, 82, 90, 95]
    assert plan.regions["test"] == [(0, 751, 1359, 1073)]
    assert plan.scenes.band_names == ("landsat_b2", "landsat_b3", "landsat_b4", "landsat_b5")
    image, valid = plan.scenes.read(plan.grid, 0, 0, 200, 200)
    assert valid.all()
    assert image.min() > 4000
    tile, _ = open_scenes([str(ZION / "landsat_b*.tif")]).read(plan.grid, 50, 70, 64, 64)
    np.testing.assert_array_equal(tile, image[:, 50:114, 70:134])


@pytest.mark.slow
def test_the_simplified_labels_need_a_legend_of_their_own(tmp_path):
    labels = str(ZION / "nlcd.tif")
    with pytest.raises(UsageError, match=r"nlcd\.tif: code 1 \(1209 pixels; and 7 more such codes\)"):
        landcover.plan(settings(labels=labels))
    path = tmp_path / "simple.yaml"
    path.write_text(SIMPLE)
    for way in ({"classes": str(path)}, {"legend": str(path)}):
        plan = landcover.plan(settings(labels=labels, **way))
        assert [entry.name for entry in plan.class_map.classes][3] == "Forest"
        assert len(plan.class_map.classes) == 8
