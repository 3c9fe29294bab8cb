from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep import detection
from hpcdl.prep.detection import Settings
from tests.prep.pictures.test_annotations import coco, voc

ROOT = Path(__file__).resolve().parents[2]
BCCD = Path(os.environ.get("HPCDL_SHARED_DATA", ROOT.parent / "shared" / "data")) / "detection" / "bccd"


def picture(path: Path, height: int = 30, width: int = 40, seed: int = 0) -> Path:
    """A black picture with a white box at rows 10 to 20, columns 4 to 12; the seed colours the rest."""
    pixels = np.full((height, width, 3), seed % 100, np.uint8)
    pixels[10:20, 4:12] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def voc_set(folder: Path, number: int = 20, **changes) -> Settings:
    for n in range(number):
        picture(folder / "JPEGImages" / f"p {n}.png", seed=n)
        voc(folder / "Annotations" / f"p {n}.xml", [("cell", 4, 10, 12, 20), ("rim", 30, 20, 45, 35)][: 1 + n % 2])
    return Settings(**{"annotations": (str(folder / "Annotations"),), **changes})


def make(settings: Settings):
    """(plan, arrays by split, manifest entries), through the pickles that workers get."""
    plan = detection.plan(settings)
    attributes, arrays = {}, {}
    for task in plan.shards:
        shipped, own = pickle.loads(pickle.dumps((plan, task)))  # noqa: S301
        content = detection.make_shard(shipped, own)
        attributes[task.name] = {**content.attributes, "num_dropped": content.num_dropped}
        for name, array in content.fields.items():
            assert array.dtype == plan.fields[name]["dtype"]
            assert list(array.shape[1:]) == plan.fields[name]["shape"]
            arrays.setdefault(task.split, {}).setdefault(name, []).append(array)
    joined = {split: {name: np.concatenate(a) for name, a in own.items()} for split, own in arrays.items()}
    entries = detection.manifest_entries(plan, attributes)
    assert detection.summary(plan, entries)
    return plan, joined, entries


@pytest.mark.parametrize("size", [(), (64,), (20, 80), (91, 33)])
def test_boxes_move_along_with_their_pixels(tmp_path, size):
    plan, arrays, entries = make(voc_set(tmp_path, size_px=size, mode="gray"))
    height, width = (size[0], size[-1]) if size else (30, 40)
    assert plan.fields["image"]["shape"] == [1, height, width]
    for own in arrays.values():
        for n in range(len(own["image"])):
            x0, y0, x1, y1 = own["boxes"][n, 0]
            inside = own["image"][n, 0, round(y0 + 1) : round(y1 - 1), round(x0 + 1) : round(x1 - 1)]
            assert inside.size
            assert inside.min() > 170
            back = (own["boxes"][n, 0].reshape(2, 2) - own["offset"][n]) / own["scale"][n]
            np.testing.assert_allclose(back, [[4, 10], [12, 20]], atol=1e-4)
            number = own["num_boxes"][n]
            assert (own["box_label"][n, number:] == -1).all()
            assert (own["box_label"][n, :number] >= 0).all()
            assert (own["height"][n], own["width"][n]) == (30, 40)
            assert entries["images"][own["image_id"][n]] == f"p {own['image'][n, 0, height // 2, width // 2]}" or size
    assert [entry["name"] for entry in entries["classes"]] == ["cell", "rim"]
    assert entries["classes"][0]["num_boxes"] == len(arrays["train"]["image"])
    assert sum(sum(c.values()) for c in plan.counts.values()) == 10  # all rims are clipped
    assert "num_clipped_boxes" in plan.counts["train"]


def test_padding_is_no_data(tmp_path):
    _, arrays, entries = make(voc_set(tmp_path, size_px=(40,), fill=200, val_fraction=0, test_fraction=0))
    image = arrays["train"]["image"]
    assert (image[:, :, :5] == 200).all()
    data = image[:, :, 5:35].transpose(1, 0, 2, 3).reshape(3, -1).astype(float)
    statistics = entries["statistics"]["image"]
    np.testing.assert_allclose(statistics["mean"], data.mean(axis=1))
    np.testing.assert_allclose(statistics["std"], data.std(axis=1))


def test_invalid_boxes_are_named_dropped_and_counted(tmp_path, capsys):
    boxes = [
        ("cell", 4, 10, 12, 20),
        ("cell", 5, 5, 5, 9),
        ("cell", 9, 5, 5, 9),
        ("cell", 40, 0, 50, 9),
        ("cell", 1, "x", 2, 3),
        ("rim", 1, 2, 3, 4),
        ("cell", -3, 2, 3, 4),
    ]
    for n in range(2):
        picture(tmp_path / f"{n}.png", seed=n)
        path = voc(tmp_path / f"{n}.xml", boxes if n else boxes[:1])
    settings = Settings(annotations=(str(tmp_path),), class_names=("cell",), val_fraction=0, test_fraction=0)
    plan, arrays, _ = make(settings)
    assert plan.counts == {"train": {"num_invalid_boxes": 5, "num_clipped_boxes": 1}}
    assert arrays["train"]["num_boxes"].tolist() == [1, 2]
    assert arrays["train"]["boxes"][1, 1].tolist() == [0, 2, 3, 4]
    err = capsys.readouterr().err
    for part in (
        "box 2 (cell): the box 5, 5, 5, 9 has no area",
        "box 3 (cell): the box 9, 5, 5, 9 has a negative side",
        "box 4 (cell): the box 40, 0, 50, 9 lies outside the picture of 30 × 40 pixels",
        "box 5 (cell): 1, x, 2, 3 are not numbers",
        "box 6 (rim): the label 'rim' is no class",
    ):
        assert f"{path}: {part}" in err


def test_coco_files_may_be_the_splits(tmp_path):
    categories = ((90, "dog"), (2, "cat"), (5, "none"))
    for split, count in (("train", 4), ("valid", 2)):
        names = [(10 * n, picture(tmp_path / split / f"{n} ü.png", seed=n).name, 30, 40) for n in range(count)]
        boxes = [(10 * n, 90 if n % 2 else 2, [4, 10, 8, 10], {"iscrowd": n % 2}) for n in range(count)]
        coco(tmp_path / split / "_annotations.coco.json", names, boxes, categories)
    train, val = (str(tmp_path / split / "_annotations.coco.json") for split in ("train", "valid"))
    plan, arrays, entries = make(Settings(annotations=(train,), val_annotations=(val,)))
    assert set(arrays) == {"train", "val"}
    assert [(entry["id"], entry["name"], entry["num_boxes"]) for entry in entries["classes"]] == [
        (2, "cat", 2),
        (5, "none", 0),
        (90, "dog", 2),
    ]
    assert arrays["train"]["box_label"][:, 0].tolist() == [0, 2, 0, 2]
    assert arrays["train"]["box_difficult"][:, 0].tolist() == [0, 1, 0, 1]
    assert arrays["val"]["image_id"].tolist() == [4, 5]
    assert entries["source_ids"] == [0, 10, 20, 30, 0, 10]
    assert plan.max_boxes == 1


def test_lists_say_the_splits(tmp_path, capsys):
    settings = voc_set(tmp_path, number=6)
    (tmp_path / "val.txt").write_bytes("\ufeffp 1\r\nJPEGImages/p 2.png\r\n\r\n".encode())
    (tmp_path / "train.txt").write_text("p 0\np 3\np 4")
    base = {**vars(settings), "val_list": str(tmp_path / "val.txt")}
    _, arrays, _ = make(Settings(**base))
    assert arrays["train"]["image_id"].tolist() == [0, 3, 4, 5]
    plan, arrays, _ = make(Settings(**{**base, "train_list": str(tmp_path / "train.txt")}))
    assert arrays["train"]["image_id"].tolist() == [0, 3, 4]
    assert arrays["val"]["image_id"].tolist() == [1, 2]
    assert plan.counts["train"]["num_unlisted"] == 1
    assert "1 pictures are in no list" in capsys.readouterr().err
    for body, message in (
        ("p 9\n", r"train\.txt:1: 'p 9' is not annotated"),
        ("p 1\n", "is in the list of train, too"),
    ):
        (tmp_path / "train.txt").write_text(body)
        with pytest.raises(UsageError, match=message):
            detection.plan(Settings(**{**base, "train_list": str(tmp_path / "train.txt")}))


def test_pictures_without_boxes_are_kept_by_option(tmp_path):
    settings = voc_set(tmp_path, number=4, val_fraction=0, test_fraction=0)
    voc(tmp_path / "Annotations" / "p 1.xml", [("cell", 5, 5, 5, 5)])
    voc(tmp_path / "Annotations" / "p 2.xml", [])
    plan, arrays, _ = make(settings)
    assert len(arrays["train"]["image"]) == 2
    assert plan.counts["train"] == {"num_without_boxes": 2, "num_invalid_boxes": 1, "num_clipped_boxes": 1}
    _, arrays, _ = make(Settings(**{**vars(settings), "keep_empty": True}))
    assert arrays["train"]["num_boxes"].tolist() == [1, 0, 0, 2]
    assert (arrays["train"]["box_label"][1] == -1).all()


def test_the_largest_boxes_are_kept(tmp_path):
    settings = voc_set(tmp_path, number=4, max_boxes=1, val_fraction=0, test_fraction=0)
    voc(tmp_path / "Annotations" / "p 0.xml", [("cell", 1, 1, 2, 2), ("cell", 4, 10, 12, 20), ("cell", 3, 3, 5, 5)])
    plan, arrays, _ = make(settings)
    assert arrays["train"]["boxes"][0].tolist() == [[4, 10, 12, 20]]
    assert plan.counts["train"]["num_excess_boxes"] == 4


def test_pictures_of_another_size_are_left_out_unless_asked_for(tmp_path, capsys):
    settings = voc_set(tmp_path, number=4, val_fraction=0, test_fraction=0, size_px=(40,))
    picture(tmp_path / "JPEGImages" / "p 1.png", 40, 30)
    plan, arrays, _ = make(settings)
    assert len(arrays["train"]["image"]) == 3
    assert plan.counts["train"]["num_other_size"] == 1
    assert "is for 30 × 40 pixels" in capsys.readouterr().err
    _, arrays, _ = make(Settings(**{**vars(settings), "any_size": True}))
    assert arrays["train"]["height"].tolist() == [30, 40, 30, 30]


def test_missing_and_damaged_pictures(tmp_path, capsys):
    settings = voc_set(tmp_path, number=6, val_fraction=0, test_fraction=0)
    (tmp_path / "JPEGImages" / "p 5.png").unlink()
    with pytest.raises(UsageError, match=r"p 5\.xml: no picture p 5 in .*JPEGImages \(1 such\)"):
        detection.plan(settings)
    drop = Settings(**{**vars(settings), "damaged": "drop"})
    (tmp_path / "JPEGImages" / "p 4.png").write_bytes(b"no picture")
    plan = detection.plan(drop)
    assert plan.counts["train"]["num_damaged"] == 2
    body = (tmp_path / "JPEGImages" / "p 3.png").read_bytes()
    (tmp_path / "JPEGImages" / "p 3.png").write_bytes(body[:-40])
    content = detection.make_shard(plan, plan.shards[0])
    assert content.num_dropped == 1
    assert content.fields["image_id"].tolist() == [0, 1, 2]
    assert "p 3.png" in capsys.readouterr().err
    picture(tmp_path / "JPEGImages" / "p 4.png")
    picture(tmp_path / "JPEGImages" / "p 5.png")
    picture(tmp_path / "JPEGImages" / "p 3.png")
    plan = detection.plan(settings)
    (tmp_path / "JPEGImages" / "p 3.png").write_bytes(body[:-40])
    with pytest.raises(FailedError, match=r"p 3\.png: not readable as a picture"):
        detection.make_shard(plan, plan.shards[0])
    picture(tmp_path / "JPEGImages" / "p 3.png", 31, 40)
    with pytest.raises(FailedError, match="is not what it was when the plan was made"):
        detection.make_shard(plan, plan.shards[0])


def test_groups_and_copies_stay_together(tmp_path):
    settings = voc_set(tmp_path, number=20, group=r"p (\d)", val_fraction=0.2, test_fraction=0.2)
    (tmp_path / "JPEGImages" / "p 2.png").write_bytes((tmp_path / "JPEGImages" / "p 3.png").read_bytes())
    _, arrays, entries = make(settings)
    owners = {}
    for split, own in arrays.items():
        for number in own["image_id"].tolist():
            owners[entries["images"][number]] = split
    assert len({owners[f"p {n}"] for n in (1, *range(10, 20))}) == 1
    assert owners["p 2"] == owners["p 3"]


def test_the_plan_follows_contents_and_settings_and_not_file_names(tmp_path):
    first = detection.plan(voc_set(tmp_path / "a"))
    assert detection.plan(voc_set(tmp_path / "b c")).digest == first.digest
    assert detection.plan(voc_set(tmp_path / "a", fill=0)).digest != first.digest
    assert detection.plan(voc_set(tmp_path / "a", seed=1)).digest != first.digest
    voc(tmp_path / "a" / "Annotations" / "p 0.xml", [("cell", 4, 10, 13, 20)])
    assert detection.plan(voc_set(tmp_path / "b c")).digest == first.digest
    assert detection.plan(Settings(annotations=(str(tmp_path / "a" / "Annotations"),))).digest != first.digest


def test_shards_are_not_above_the_size_asked_for(tmp_path):
    settings = voc_set(tmp_path, number=30, size_px=(200,), shard_mb=1, val_fraction=0, test_fraction=0)
    plan, arrays, _ = make(settings)
    assert len(plan.shards) == 4
    assert max(task.num_bytes for task in plan.shards) <= 1e6
    assert len(arrays["train"]["image"]) == 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ("nowhere",)}, "nowhere"),
        ({"class_names": ("cel",)}, "no box of the annotations is labelled 'cel'; labels: cell, rim"),
        ({"fill": 300}, "fill is 300"),
        ({"size_px": (1, 2, 3)}, "size_px is 1, 2, 3"),
        ({"val_list": "x", "test_annotations": ("y",)}, "val_list and test_annotations do not go together"),
        ({"val_images": ("x",)}, "val_images is given without val_annotations"),
        ({"group": "p", "split": "order"}, "group is for pictures that are drawn"),
        ({"val_list": "missing.txt"}, r"missing\.txt: no such file"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, "leave nothing to train"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        detection.plan(voc_set(tmp_path, number=4, **changes))


def test_a_picture_annotated_twice_or_named_ambiguously_is_refused(tmp_path):
    settings = voc_set(tmp_path, number=4)
    voc(tmp_path / "Annotations" / "sub" / "p 1.xml", [("cell", 4, 10, 12, 20)])
    with pytest.raises(UsageError, match=r"p 1\.xml: the picture .*p 1\.png is annotated by .* already"):
        detection.plan(settings)
    (tmp_path / "Annotations" / "sub" / "p 1.xml").unlink()
    picture(tmp_path / "JPEGImages" / "sub" / "p 1.jpg")
    picture(tmp_path / "JPEGImages" / "sub" / "p 1.png")
    numbers = {record.number: record.path for task in detection.plan(settings).shards for record in task.items}
    assert numbers[1] == tmp_path / "JPEGImages" / "p 1.png"  # the exact place wins
    (tmp_path / "JPEGImages" / "p 1.png").unlink()
    with pytest.raises(UsageError, match=r"p 1\.xml: 'p 1' fits several pictures"):
        detection.plan(settings)
    voc(tmp_path / "Annotations" / "p 1.xml", [("cell", 4, 10, 12, 20)], filename="p 1.jpg")
    numbers = {record.number: record.path for task in detection.plan(settings).shards for record in task.items}
    assert numbers[1] == tmp_path / "JPEGImages" / "sub" / "p 1.jpg"


@pytest.mark.skipif(not BCCD.is_dir(), reason="the shared blood cells are not on this machine")
def test_blood_cells_have_292_pictures_and_two_invalid_boxes(capsys):
    lists = {"train_list": str(BCCD / "train.txt"), "val_list": str(BCCD / "val.txt")}
    settings = Settings(annotations=(str(BCCD / "Annotations"),), size_px=(160,), **lists)
    plan = detection.plan(settings)
    assert {split: sum(len(t.items) for t in plan.shards if t.split == split) for split in ("train", "val")} == {
        "train": 205,
        "val": 87,
    }
    assert sum(counts["num_invalid_boxes"] for counts in plan.counts.values()) == 2
    err = capsys.readouterr().err
    assert "BloodImage_00338.xml: box 13 (RBC): the box 504, 337, 504, 337 has no area" in err
    assert "BloodImage_00343.xml: box 4 (RBC)" in err
    assert [name for name, _ in plan.classes] == ["Platelets", "RBC", "WBC"]
    boxes = np.concatenate([record.labels for task in plan.shards for record in task.items])
    assert np.bincount(boxes).tolist() == [292, 3348, 301]
    task = plan.shards[-1]
    few = type(task)(task.name, task.split, task.items[:2], task.where, task.num_bytes)
    content = detection.make_shard(plan, few)
    assert content.fields["image"].shape == (2, 3, 160, 160)
