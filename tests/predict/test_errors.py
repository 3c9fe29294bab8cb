from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from hpcdl.predict import rasters
from tests.generators import UTM, image_affine, write_raster
from tests.predict.conftest import SIZE, Case, grid_entry, truth, write_labels


def test_no_checkpoint(make_case: Callable[..., Case]) -> None:
    case = make_case()
    shutil.rmtree(case.run / "checkpoints")
    (case.run / "attempts.jsonl").write_text('{"event": "submitted", "job_id": "4711"}\n')
    code, out, err = case.predict()
    assert (code, out) == (2, "")
    assert err == (
        "hpcdl: tiny: has no checkpoint yet: its job is 4711; wait for it (hpcdl status tiny) or submit it again\n"
    )


def test_not_a_training_run(make_case: Callable[..., Case]) -> None:
    case = make_case()
    spec = yaml.safe_load((case.run / "run.yaml").read_text())
    (case.run / "run.yaml").write_text(yaml.safe_dump({**spec, "kind": "preprocess"}))
    assert "is a preprocess run; predict needs a training run" in case.predict()[2]


def test_wrong_number_of_bands(make_case: Callable[..., Case]) -> None:
    case = make_case()
    one = write_raster(case.folder / "one.tif", np.ones((1, *SIZE), np.uint16), image_affine(), UTM)
    code, _, err = case.predict(images=[str(one)])
    assert code == 2
    assert "the images have 1 band(s) (one), but run tiny was trained on 2 (names unknown)" in err


def test_another_pixel_type_is_a_warning(make_case: Callable[..., Case]) -> None:
    case = make_case()
    floats = write_raster(case.folder / "f.tif", np.full((2, *SIZE), 200, np.float32), image_affine(), UTM)
    code, _, err = case.predict(images=[str(floats)])
    assert code == 0
    assert err.startswith("hpcdl: warning: the images hold float32, run tiny was trained on uint16")
    assert set(np.unique(case.map())) == {42}


@pytest.mark.parametrize("grid", ["auto", "image"])
def test_labels_elsewhere(make_case: Callable[..., Case], grid: str) -> None:
    case = make_case()
    code, _, err = case.predict(labels=str(write_labels(case.folder, truth(), shift_px=500)), grid=grid)
    assert code == 2
    assert "the labels do not overlap the images" in err


def test_region_on_other_pixels(make_case: Callable[..., Case]) -> None:
    case = make_case(extra={"grid": grid_entry(shift_px=0.5)})
    code, _, err = case.predict(labels=str(case.labels), region="test")
    assert code == 2
    assert "region 'test' is known in pixels of the run's data set (EPSG:32612, pixel size 30)" in err


def test_region_without_rectangles_or_labels(make_case: Callable[..., Case]) -> None:
    case = make_case()
    assert "has regions: train, test" in case.predict(labels=str(case.labels), region="val")[2]
    assert "there are no labels; give --labels" in case.predict(region="test")[2]


def test_no_labelled_pixel_keeps_the_map(make_case: Callable[..., Case]) -> None:
    case = make_case()
    labels = write_raster(case.folder / "none.tif", np.full((1, *SIZE), 255, np.uint8), image_affine(), UTM, nodata=255)
    code, out, err = case.predict(labels=str(labels))
    assert (code, out) == (1, "")
    assert "nothing could be scored; the map is written" in err
    assert np.array_equal(case.map(), case.expected())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": "map.png"}, "give a file name that ends in .tif"),
        ({"out": "scene.tif"}, "is one of the inputs"),
        ({"images": []}, "no image is given"),
        ({"overlap": 0.95}, "setting 'overlap': 0.95 is out of range; expected float from 0 to 0.9"),
        ({"region": "tset"}, "Did you mean 'test'?"),
    ],
)
def test_unusable_requests(make_case: Callable[..., Case], arguments: dict[str, object], message: str) -> None:
    code, out, err = make_case().predict(**arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_diverged_network_is_an_error_and_leaves_nothing(make_case: Callable[..., Case]) -> None:
    case = make_case("nan")
    code, _, err = case.predict()
    assert code == 1
    assert "NaN or infinite scores" in err
    assert not list((case.folder / "out").iterdir())


@pytest.mark.parametrize("out", ["/proc/x/map.tif", "scene.tif/map.tif", "n" * 250 + ".tif"])
def test_a_place_that_cannot_be_written_is_refused_before_the_network_is_loaded(
    make_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.delattr(rasters, "Network")
    case = make_case()
    code, output, err = case.predict(out=out)
    assert (code, output) == (1, "")
    assert err.startswith(f"hpcdl: {(case.folder / out).parent}: cannot be written: ")
    assert err.count("\n") == 1


def test_a_folder_of_somebody_else_is_one_line(make_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking into it is forbidden already; root may, so this pretends."""
    case = make_case()
    original = Path.is_dir

    def forbidden(path: Path) -> bool:
        if path.name == "map.tif":
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(path)

    monkeypatch.setattr(Path, "is_dir", forbidden)
    code, _, err = case.predict()
    assert code == 1
    assert err == (f"hpcdl: {case.folder}/out: cannot be written: Permission denied; give another place with --out\n")


def test_manifest_of_another_data_set(make_case: Callable[..., Case]) -> None:
    case = make_case()
    spec = yaml.safe_load((case.run / "run.yaml").read_text())
    spec["data"]["digest"] = "0" * 64
    (case.run / "run.yaml").write_text(yaml.safe_dump(spec))
    assert "is not the data set that tiny was trained on" in case.predict()[2]
