from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from hpcdl.predict.geotiff import ClassCodes
from tests.predict.conftest import CLASSES, NODATA_PX, SIZE, Case, grid_entry


@pytest.mark.parametrize(
    ("window_px", "overlap"), [(32, 0.0), (32, 0.5), (48, 0.3), (31, 0.77), (200, 0.5), (None, 0.5)]
)
def test_pixels_come_out_where_they_went_in(
    make_case: Callable[..., Case], window_px: int | None, overlap: float
) -> None:
    case = make_case()
    assert case.predict(window_px=window_px, overlap=overlap, tta=window_px == 31, batch_size=3)[0] == 0
    assert np.array_equal(case.map(), case.expected())


def test_a_gis_finds_everything_in_the_map(make_case: Callable[..., Case]) -> None:
    case = make_case()
    code, out, err = case.predict()
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == str(case.folder / "out/map.png")
    with rasterio.open(case.folder / "out/map.tif") as dataset, rasterio.open(case.scene) as scene:
        assert dataset.transform == scene.transform
        assert dataset.crs == scene.crs
        assert dataset.shape == SIZE
        assert dataset.dtypes == ("uint8",)
        assert dataset.nodata == 0
        assert dataset.block_shapes == [(256, 256)]
        assert dataset.compression.value == "DEFLATE"
        assert dataset.colorinterp == (ColorInterp.palette,)
        assert [dataset.colormap(1)[entry["code"]] for entry in CLASSES] == [(*e["color"], 255) for e in CLASSES]
        assert dataset.colormap(1)[0] == (0, 0, 0, 0)
        assert dataset.tags(1)["class_42"] == "Evergreen Forest"
        assert dataset.tags()["hpcdl_run"] == "tiny"
    assert "<Category>Evergreen Forest</Category>" in (case.folder / "out/map.tif.aux.xml").read_text()
    assert not list((case.folder / "out").glob(".*"))


@pytest.mark.parametrize("overlap", [0.0, 0.4, 0.8])
def test_constant_scores_leave_no_seam(make_case: Callable[..., Case], overlap: float) -> None:
    case = make_case("constant")
    assert case.predict(window_px=32, overlap=overlap, probabilities=True)[0] == 0
    with rasterio.open(case.folder / "out/map.probabilities.tif") as dataset:
        steps_KHW = dataset.read()
        assert dataset.scales == (0.004,) * 3
        assert dataset.descriptions[1] == "42 Evergreen Forest"
    valid_HW = case.map() != 0
    assert (steps_KHW[:, ~valid_HW] == 255).all()
    softmax = np.exp([0, 1, 0]) / np.exp([0, 1, 0]).sum()
    assert (steps_KHW[:, valid_HW] == np.rint(softmax / 0.004)[:, None]).all()


def test_window_edges_do_not_show(make_case: Callable[..., Case]) -> None:
    """A convolution that pads is off at a window's edges, where the blend gives it next to no weight."""
    case = make_case("conv")
    maps = {}
    for name, overlap in (("whole", None), ("hard", 0.0), ("blended", 0.5)):
        settings = {"window_px": 256} if overlap is None else {"window_px": 48, "overlap": overlap}
        assert case.predict(out=f"{name}.tif", probabilities=True, **settings)[0] == 0
        with rasterio.open(case.folder / f"{name}.probabilities.tif") as dataset:
            maps[name] = dataset.read().astype(int)
    inner = np.s_[:, NODATA_PX:-8, NODATA_PX:-8]
    errors = {name: np.abs(maps[name] - maps["whole"])[inner].max() for name in ("hard", "blended")}
    assert errors["blended"] < errors["hard"] / 2


def test_prior_power_finds_the_rare_class(make_case: Callable[..., Case]) -> None:
    case = make_case("constant")
    case.predict(prior_power=0.0)
    assert set(np.unique(case.map())) == {0, 42}
    case.predict(prior_power=1.0)
    assert set(np.unique(case.map())) == {0, 81}


def test_without_labels_the_map_lies_on_the_data_sets_pixels(make_case: Callable[..., Case]) -> None:
    case = make_case(extra={"grid": grid_entry(shift_px=20.5)})
    assert case.predict(resampling="nearest")[0] == 0
    with rasterio.open(case.folder / "out/map.tif") as dataset, rasterio.open(case.scene) as scene:
        assert dataset.transform.c == scene.transform.c - 15
        assert dataset.transform.f == scene.transform.f + 15
        assert dataset.shape == (SIZE[0] + 1, SIZE[1] + 1)
        assert dataset.bounds.right >= scene.bounds.right
    case.predict(grid="image")
    assert np.array_equal(case.map(), case.expected())


def test_nodata_is_a_code_that_no_class_has() -> None:
    assert ClassCodes([{"code": 1}, {"code": 2}]).nodata == 0
    assert ClassCodes([{"code": 0}, {"code": 255}]).nodata == 254
    wide = ClassCodes([{"code": 0}, {"code": 3000}])
    assert (wide.dtype, wide.nodata) == ("uint16", 65535)
    assert wide.decode(wide.encode(np.array([0, 1, 255], np.uint8))).tolist() == [0, 1, 255]
