from __future__ import annotations

import csv
import json
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from hpcdl.predict.accuracy import score
from tests.generators import image_affine, write_raster
from tests.predict.conftest import CLASSES, NODATA_PX, Case, truth, write_labels


def test_scores_are_scikit_learns() -> None:
    random = np.random.default_rng(0)
    true = random.choice([0, 1, 3], 4000, p=[0.7, 0.2, 0.1])
    said = np.where(random.random(4000) < 0.6, true, random.choice([0, 1, 2], 4000))
    classes = [{"code": k, "name": str(k)} for k in range(5)]
    scores = score(confusion_matrix(true, said, labels=range(5)), classes)
    assert scores.accuracy == accuracy_score(true, said)
    assert scores.macro_f1 == pytest.approx(f1_score(true, said, average="macro", zero_division=0))
    assert scores.macro_f1_truth == pytest.approx(f1_score(true, said, average=None, labels=[0, 1, 3]).mean())
    precision, recall, f1, support = precision_recall_fscore_support(true, said, labels=range(4), zero_division=0)
    for index, one in enumerate(scores.per_class[:4]):
        assert (one.precision, one.recall, one.f1) == pytest.approx((precision[index], recall[index], f1[index]))
        assert one.support == support[index]
        assert one.iou == pytest.approx(f1[index] / (2 - f1[index]))
    assert scores.to_json()["per_class"]["4"] == {
        "code": 4, "precision": None, "recall": None, "f1": None, "iou": None, "support": 0,
    }  # fmt: skip


def test_a_perfect_map_scores_one_everywhere(make_case: Callable[..., Case]) -> None:
    case = make_case()
    code, out, _ = case.predict(labels=str(case.labels), json_output=True)
    assert code == 0
    document = json.loads(out)
    assert (document["accuracy"], document["macro_f1"]) == (1, 1)
    assert document["num_pixels"] == truth().size - NODATA_PX**2
    names = ("tif", "tif.aux.xml", "accuracy.json", "accuracy.csv", "confusion.csv", "confusion.png", "png")
    assert document["files"] == [str(case.folder / f"out/map.{name}") for name in names]
    assert document["map"] == document["files"][0]
    assert document["picture"] == document["files"][-1]
    rows = list(csv.reader((case.folder / "out/map.confusion.csv").read_text().splitlines()))
    assert rows[0][1:] == ["11 Open Water", "42 Evergreen Forest", "81 Pasture/Hay"]
    assert sum(int(cell) for row in rows[1:] for cell in row[1:]) == document["num_pixels"]
    saved = json.loads((case.folder / "out/map.accuracy.json").read_text())
    assert saved["per_class"] == document["per_class"]
    assert saved["region"] == "all"


def test_only_the_region_is_scored(make_case: Callable[..., Case]) -> None:
    case = make_case()
    wrong = truth()
    wrong[:, 65:] = (wrong[:, 65:] + 1) % 3
    labels = str(write_labels(case.folder, wrong))
    for region, accuracy, pixels in (("train", 1, 100 * 65 - NODATA_PX**2), ("test", 0, 100 * 65)):
        document = json.loads(case.predict(labels=labels, region=region, json_output=True)[1])
        assert (document["accuracy"], document["num_pixels"]) == (accuracy, pixels)


def test_region_of_a_map_that_begins_elsewhere(make_case: Callable[..., Case]) -> None:
    """The labels' grid begins 10 pixels further: the region's rectangle moves with it."""
    case = make_case()
    labels = str(write_labels(case.folder, truth()[10:, 10:], shift_px=10))
    code, out, _ = case.predict(labels=labels, region="test", json_output=True)
    assert code == 0
    assert json.loads(out)["num_pixels"] == 90 * 65


def test_unknown_codes_are_left_out_and_named(make_case: Callable[..., Case]) -> None:
    case = make_case()
    codes_HW = np.array([11, 42, 81], np.uint8)[truth()]
    codes_HW[50:52] = 52
    codes_HW[52] = 99
    codes_HW[53] = 0  # unclassified in the legend
    labels = write_raster(case.folder / "more.tif", codes_HW[None], image_affine(), "EPSG:32612", nodata=255)
    code, out, err = case.predict(labels=str(labels), json_output=True)
    assert code == 0
    assert json.loads(out)["num_pixels"] == truth().size - NODATA_PX**2 - 4 * 130
    assert "52 Shrub/Scrub: 260" in err
    assert "99 (not in the legend): 130" in err
    assert "390 label pixels" in err


def test_labels_are_brought_onto_the_images_grid(make_case: Callable[..., Case]) -> None:
    case = make_case()
    coarse = write_raster(
        case.folder / "coarse.tif", np.array([11, 42, 81], np.uint8)[truth()[3::7, 3::7]][None],
        image_affine(210.0), "EPSG:32612",
    )  # fmt: skip
    document = json.loads(case.predict(labels=str(coarse), grid="image", json_output=True)[1])
    assert document["accuracy"] == 1


def test_the_table_is_plain_text_in_a_pipe(make_case: Callable[..., Case]) -> None:
    case = make_case()
    _, out, _ = case.predict(labels=str(case.labels))
    assert "\x1b" not in out
    assert "Evergreen Forest" in out
    assert "macro-F1        1.0000" in out
    assert [entry["name"] for entry in CLASSES] == [e["name"] for e in CLASSES if e["name"] in out]
