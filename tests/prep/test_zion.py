"""The real scene, when the shared data are there."""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from hpcdl.errors import UsageError
from hpcdl.prep import landcover
from hpcdl.prep.landcover import Settings
from hpcdl.raster.grid import Grid
from hpcdl.raster.legend import IGNORE_INDEX
from hpcdl.raster.scene import open_scenes
from tests.generators import write_raster

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
    assert plan.layout.regions["test"] == [(0, 751, 1359, 1073)]
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


def separability(image_CN: np.ndarray, label_N: np.ndarray) -> float:
    """Mean over classes and bands of Fisher's ratio of a class to all others: (m1 - m2)² / (v1 + v2)."""
    number = np.bincount(label_N)
    ratios = []
    for band in image_CN.astype(np.float64):
        sums, squares = np.bincount(label_N, band), np.bincount(label_N, band**2)
        own = sums / number
        others = (sums.sum() - sums) / (number.sum() - number)
        own_variance = squares / number - own**2
        others_variance = (squares.sum() - squares) / (number.sum() - number) - others**2
        ratios.append((own - others) ** 2 / (own_variance + others_variance))
    return float(np.mean(ratios))


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["labels", "image"])
def test_labels_shifted_by_a_pixel_fit_the_image_less(grid):
    """Were image and labels a pixel apart, some shift would tell the classes better apart than none does."""
    chip, stride = 64, 60
    plan = landcover.plan(settings(chip_px=chip, stride_px=stride, grid=grid))
    whole = plan.labels.read_classes(plan.class_map, plan.grid, 0, 0, plan.grid.height, plan.grid.width)
    images, labels = [], {shift: [] for shift in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))}
    for task in plan.shards:
        fields = landcover.make_shard(plan, task).fields
        places = zip(fields["row"].tolist(), fields["col"].tolist(), strict=True)
        for image, label, (row, col) in zip(fields["image"], fields["label"], places, strict=True):
            np.testing.assert_array_equal(label, whole[row : row + chip, col : col + chip])
            images.append(image[:, 1:-1, 1:-1].reshape(len(image), -1))
            for (down, right), found in labels.items():
                found.append(label[1 + down : chip - 1 + down, 1 + right : chip - 1 + right].ravel())
    image_CN = np.concatenate(images, axis=1)
    known = np.logical_and.reduce([np.concatenate(found) != IGNORE_INDEX for found in labels.values()])
    score = {shift: separability(image_CN[:, known], np.concatenate(found)[known]) for shift, found in labels.items()}
    own = score.pop((0, 0))
    assert max(score.values()) < 0.97 * own, score


def cut_scene(folder: Path, row: int, col: int, height: int, width: int) -> str:
    """A part of the four bands, as a scene of its own; a glob that finds it."""
    for path in sorted(ZION.glob("landsat_b*.tif")):
        with rasterio.open(path) as dataset:
            values = dataset.read(window=Window(col, row, width, height))
            affine = Grid.from_dataset(dataset).window(row, col, height, width).affine
            write_raster(folder / path.name, values, affine, dataset.crs, dataset.nodata)
    return str(folder / "landsat_b*.tif")


def pixels_of(plan: landcover.Plan, split: str, height: int, width: int, corner: tuple[int, int]) -> np.ndarray:
    """Which pixels of a larger grid lie in a chip of the split; `corner` is where the plan's grid lies on it."""
    covered = np.zeros((height, width), bool)
    chip = plan.options.chip_px
    for task in plan.shards:
        for row, col in task.items.tolist() if task.split == split else ():
            covered[row + corner[0] : row + corner[0] + chip, col + corner[1] : col + corner[1] + chip] = True
    return covered


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["labels", "image"])
@pytest.mark.parametrize(("buffer_px", "seed"), [(0, 0), (0, 3), (16, 1)])
def test_what_one_scene_tests_on_no_other_scene_trains_on(tmp_path, grid, buffer_px, seed):
    """Two scenes that overlap, with the same labels, made into data sets one by one."""
    extents = {"one": (0, 0, 900, 800), "two": (301, 252, 1100, 850), "three": (200, 413, 700, 600)}
    common = settings(test_region=None, test_fraction=0.2, val_fraction=0.1, chip_px=16, block_px=64, grid=grid)
    changes = {"buffer_px": buffer_px, "seed": seed}
    plans = []
    for name, extent in extents.items():
        images = (cut_scene(tmp_path / name, *extent),)
        plans.append(landcover.plan(dataclasses.replace(common, images=images, **changes)))
        assert plans[-1].layout.method == "blocks"
    base = open_scenes([str(ZION / "landsat_b2.tif")]).grid if grid == "image" else plans[0].labels.grid
    corners = [plan.grid.offset_in(base) for plan in plans]
    covered = [
        {split: pixels_of(plan, split, base.height, base.width, corner) for split in ("train", "val", "test")}
        for plan, corner in zip(plans, corners, strict=True)
    ]
    for one, other in itertools.permutations(covered, 2):
        assert (one["test"] & other["test"]).sum() > 1000
        for split, another in (("train", "test"), ("train", "val"), ("val", "test")):
            assert not (one[split] & other[another]).any(), (split, another)
