from __future__ import annotations

import dataclasses
import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep import images
from hpcdl.prep.images import Settings
from tests.generators import truncate

DATA = Path(os.environ.get("HPCDL_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def picture(path: Path, shade: int, size=(6, 8), mode="RGB") -> Path:
    """A flat picture with a few pixels of its own, so that no two are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    pixels = np.full((height, width, 3), shade % 256, np.uint8)
    pixels[0, :2, 0] = shade // 256, shade % 7
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def tree(root: Path, classes=("cat", "dög 2"), number=10, splits=("",), **options) -> Path:
    shade = 0
    for split in splits:
        for name in classes:
            for place in range(number):
                shade += 3
                picture(root / split / name / f"picture {place}.png", shade, **options)
    return root


def idx(path: Path, array: np.ndarray) -> Path:
    data = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def digits(folder: Path, name="t10k", number=50, seed=0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (number, 4, 5), np.uint8)
    idx(folder / f"{name}-images-idx3-ubyte.gz", pixels)
    idx(folder / f"{name}-labels-idx1-ubyte.gz", np.arange(number) % 10)
    return pixels


def made(settings: Settings):
    """(plan, fields of each split, attributes of each shard, manifest entries)."""
    plan = images.plan(settings)
    contents = {task.name: images.make_shard(pickle.loads(pickle.dumps(plan)), task) for task in plan.shards}  # noqa: S301
    fields = {
        split: {
            name: np.concatenate([contents[t.name].fields[name] for t in plan.shards if t.split == split])
            for name in plan.fields
        }
        for split in dict.fromkeys(task.split for task in plan.shards)
    }
    entries = images.manifest_entries(plan, {name: content.attributes for name, content in contents.items()})
    assert images.summary(plan, entries)
    return plan, fields, contents, entries


def test_idx_files_in_file_order(tmp_path):
    pixels = digits(tmp_path)
    plan, fields, _, entries = made(Settings(images=(str(tmp_path),), split="order"))
    assert {split: len(own["label"]) for split, own in fields.items()} == {"train": 40, "val": 5, "test": 5}
    np.testing.assert_array_equal(np.concatenate([own["image"] for own in fields.values()])[:, 0], pixels)
    np.testing.assert_array_equal(fields["val"]["label"], np.arange(40, 45) % 10)
    assert fields["train"]["label"].dtype == np.int64
    assert [entry["name"] for entry in entries["classes"]] == [str(n) for n in range(10)]
    train = fields["train"]["image"].astype(float)
    assert entries["statistics"]["image"]["mean"] == pytest.approx([train.mean()])
    assert entries["statistics"]["image"]["std"] == pytest.approx([train.std()])
    assert entries["statistics"]["label"]["histogram"] == [4] * 10
    assert plan.fields["image"] == {"dtype": "uint8", "shape": [1, 4, 5]}


def test_a_packed_and_an_unpacked_file_are_one(tmp_path):
    digits(tmp_path)
    for name in ("images-idx3", "labels-idx1"):
        packed = tmp_path / f"t10k-{name}-ubyte.gz"
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    plan = images.plan(Settings(images=(str(tmp_path),), split="order"))
    assert sum(len(task.items) for task in plan.shards) == 50


def test_two_idx_pairs_are_splits_and_val_is_drawn_from_train(tmp_path):
    digits(tmp_path, "train", 60)
    test = digits(tmp_path, "t10k", 20, seed=1)
    _, fields, _, _ = made(Settings(images=(str(tmp_path / "*-images*"),)))
    assert {split: len(own["label"]) for split, own in fields.items()} == {"train": 54, "val": 6, "test": 20}
    np.testing.assert_array_equal(fields["test"]["image"][:, 0], test)
    _, fields, _, _ = made(Settings(images=(str(tmp_path),), split="random", val_fraction=0.25, test_fraction=0.25))
    assert {split: len(own["label"]) for split, own in fields.items()} == {"train": 40, "val": 20, "test": 20}


def test_copies_of_a_picture_are_drawn_together_and_told(tmp_path):
    pixels = np.repeat(np.random.default_rng(0).integers(0, 256, (20, 3, 3)), 3, axis=0)
    np.savez(tmp_path / "x.npz", images=pixels.astype(np.uint8), labels=np.arange(60) % 2)
    plan, fields, _, _ = made(Settings(images=(str(tmp_path / "x.npz"),), val_fraction=0.2, test_fraction=0.2))
    seen = [{image.tobytes() for image in own["image"]} for own in fields.values()]
    assert len(set.union(*seen)) == sum(map(len, seen)) == 20
    assert "60 samples have the same picture" in plan.notes[0]


@pytest.mark.parametrize(
    "names",
    [("x_train", "y_train", "x_test", "y_test"), ("train_images", "train_labels", "test_images", "test_labels")],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_npz_as_keras_and_medmnist_ship_them(tmp_path, names, compressed):
    draw = np.random.default_rng(3)
    parts = [draw.integers(0, 256, (30, 5, 4, 3), np.uint8), np.arange(30)[:, None] % 3]
    parts += [draw.integers(0, 256, (9, 5, 4, 3), np.uint8), np.arange(9)[:, None] % 3]
    (np.savez_compressed if compressed else np.savez)(tmp_path / "d.npz", **dict(zip(names, parts, strict=True)))
    _, fields, _, entries = made(
        Settings(images=(str(tmp_path / "d.npz"),), class_names=("a", "b", "c"), val_fraction=0.0)
    )
    np.testing.assert_array_equal(fields["train"]["image"], parts[0].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(fields["test"]["label"], np.arange(9) % 3)
    assert [entry["name"] for entry in entries["classes"]] == ["a", "b", "c"]


def test_npy_channels_first_and_text_labels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 9)).astype(np.int64)
    np.save(tmp_path / "x.npy", pixels)
    np.save(tmp_path / "y.npy", np.array(["wolf", "ape"] * 10))
    _, fields, _, entries = made(
        Settings(images=(str(tmp_path / "x.npy"),), labels=(str(tmp_path / "y.npy"),), split="order", mode="gray")
    )
    assert fields["train"]["image"].shape == (16, 1, 8, 9)
    assert [entry["name"] for entry in entries["classes"]] == ["ape", "wolf"]
    assert fields["train"]["label"][:2].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.array([{}] * 4), "labels": np.arange(4)}, "pickled objects"),
        ({"images": np.random.default_rng(0).random((4, 5, 5)), "labels": np.arange(4)}, "no whole numbers"),
        ({"images": np.zeros((4, 5, 5), np.int32) - 1, "labels": np.arange(4)}, "values from -1"),
        ({"images": np.zeros((4, 25), np.uint8), "labels": np.arange(4)}, r"shape \(4, 25\)"),
        ({"images": np.zeros((4, 5, 5), np.uint8), "labels": np.arange(5)}, "4 pictures.*5 labels"),
        ({"images": np.zeros((4, 5, 5), np.uint8), "labels": np.eye(4)}, r"labels of the shape \(4, 4\)"),
        ({"images": np.zeros((4, 5, 5), np.uint8), "labels": np.zeros(4, int)}, "one class, '0'"),
        ({"images": np.zeros((4, 5, 5), np.uint8), "u": np.zeros(4), "v": np.zeros(4)}, "images, u, v"),
        ({"images": np.zeros((4, 5, 5), np.uint8), "labels": np.array([0.5, 1, 2, 3])}, "labels of type float64"),
        ({"images": np.asfortranarray(np.zeros((4, 5, 5), np.uint8)), "labels": np.arange(4)}, "Fortran order"),
    ],
)
def test_arrays_that_are_no_labelled_pictures_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UsageError, match=message) as error:
        images.plan(Settings(images=(str(tmp_path / "x.npz"),)))
    assert "x.npz" in str(error.value) or "--images" in str(error.value)


def test_a_damaged_array_file_is_refused(tmp_path):
    digits(tmp_path)
    truncate(tmp_path / "t10k-images-idx3-ubyte.gz", 0.7)
    with pytest.raises(UsageError, match=r"t10k-images-idx3-ubyte\.gz: not readable at row"):
        images.plan(Settings(images=(str(tmp_path),)))
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((4, 5, 5), np.uint8), labels=np.arange(4))
    truncate(tmp_path / "x.npz", 0.5)
    with pytest.raises(UsageError, match=r"x\.npz: not readable as arrays"):
        images.plan(Settings(images=(str(tmp_path / "x.npz"),)))


def test_a_folder_for_each_class(tmp_path, capsys):
    root = tree(tmp_path / "my data")
    (root / "cat" / "notes.txt").write_text("x")
    (root / "cat" / ".hidden.png").write_text("x")
    (root / "empty").mkdir()
    plan, fields, _, entries = made(Settings(images=(str(root),), val_fraction=0.2, test_fraction=0.2))
    assert [entry["name"] for entry in entries["classes"]] == ["cat", "dög 2"]
    assert {split: len(own["label"]) for split, own in fields.items()} == {"train": 12, "val": 4, "test": 4}
    assert plan.fields["image"]["shape"] == [3, 6, 8]
    messages = capsys.readouterr().err
    assert "notes.txt: no picture" in messages
    assert "empty: holds no picture; no class" in messages


def test_folders_of_splits(tmp_path):
    root = tree(tmp_path, splits=("Train", "valid", "test"), number=4)
    _, fields, _, _ = made(Settings(images=(str(root),)))
    assert {split: len(own["label"]) for split, own in fields.items()} == {"train": 8, "val": 8, "test": 8}
    _, fields, _, _ = made(Settings(images=(str(root / "Train"), str(root / "test")), val_fraction=0.0))
    assert {split: len(own["label"]) for split, own in fields.items()} == {"train": 8, "test": 8}


def test_numbered_folders_are_ordered_as_numbers_and_may_get_names(tmp_path):
    root = tree(tmp_path, classes=("10", "2", "1"), number=8)
    _, _, _, entries = made(Settings(images=(str(root),)))
    assert [entry["name"] for entry in entries["classes"]] == ["1", "2", "10"]
    _, _, _, entries = made(Settings(images=(str(root),), class_names=("one", "two", "ten")))
    assert entries["classes"][2] == {"index": 2, "name": "ten", "code": 10}
    with pytest.raises(UsageError, match="2 names for 3 classes"):
        images.plan(Settings(images=(str(root),), class_names=("one", "two")))


def test_pictures_in_no_class_folder_are_refused(tmp_path):
    tree(tmp_path)
    picture(tmp_path / "stray.png", 1)
    with pytest.raises(UsageError, match=r"stray\.png: lies in no class folder"):
        images.plan(Settings(images=(str(tmp_path),)))
    with pytest.raises(UsageError, match="has no folders"):
        images.plan(Settings(images=(str(tmp_path / "cat"),)))
    with pytest.raises(UsageError, match="says nothing about classes"):
        images.plan(Settings(images=(str(tmp_path / "stray.png"),)))
    with pytest.raises(UsageError, match="no such file"):
        images.plan(Settings(images=(str(tmp_path / "none"),)))


def test_different_sizes_need_a_size(tmp_path):
    tree(tmp_path)
    picture(tmp_path / "cat" / "wide.png", 999, size=(6, 30))
    with pytest.raises(UsageError, match=r"is 6 × 30 pixels, but .* is 6 × 8; .*--size-px"):
        images.plan(Settings(images=(str(tmp_path),)))
    for how in ("stretch", "crop", "pad"):
        _, fields, _, _ = made(Settings(images=(str(tmp_path),), size_px=(12, 10), resize=how))
        assert fields["train"]["image"].shape[1:] == (3, 12, 10)


def test_margins_do_not_count_in_the_statistics(tmp_path):
    for number in range(10):
        for name in ("a", "b"):
            path = tmp_path / name / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("L", (4, 8), 100 + (number % 2)).save(path)
    _, fields, _, entries = made(Settings(images=(str(tmp_path),), size_px=(8,), resize="pad", split="order"))
    assert (fields["train"]["image"][..., 0] == 0).all()
    assert 100 <= entries["statistics"]["image"]["mean"][0] <= 101
    assert entries["statistics"]["image"]["count"] == [16 * 32]


def test_mixed_channels_need_a_mode(tmp_path):
    tree(tmp_path)
    picture(tmp_path / "cat" / "gray.png", 5, mode="L")
    with pytest.raises(UsageError, match="--mode gray or --mode rgb"):
        images.plan(Settings(images=(str(tmp_path),)))
    assert made(Settings(images=(str(tmp_path),), mode="gray"))[1]["train"]["image"].shape[1] == 1


def table(path: Path, text: str, encoding="utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_lists(tmp_path, encoding, delimiter):
    rows = [delimiter.join(("Image", "Label", "split", "note"))]
    for number in range(12):
        picture(tmp_path / "pics" / f"ü {number}.png", number * 5)
        split = ("train", "Validation", "test")[number % 3]
        rows.append(delimiter.join((f"pics/ü {number}.png", ("kätzchen", "hund")[number % 2], split, '"x, y;\t z"')))
    path = table(tmp_path / "liste.csv", "\r\n".join([*rows, "", ""]), encoding)
    _, fields, _, entries = made(Settings(images=(str(path),)))
    assert {split: len(own["label"]) for split, own in fields.items()} == {"train": 4, "val": 4, "test": 4}
    assert [entry["name"] for entry in entries["classes"]] == ["hund", "kätzchen"]
    assert fields["train"]["label"].tolist() == [1, 0, 1, 0]
    order = made(Settings(images=(str(path),), class_names=("kätzchen", "hund"), split="random"))
    assert [entry["name"] for entry in order[3]["classes"]] == ["kätzchen", "hund"]


def test_csv_with_ids_a_root_and_an_ending(tmp_path):
    for number in range(10):
        picture(tmp_path / "pics" / f"{number}.png", number * 5)
    lists = tmp_path / "lists"
    lists.mkdir()
    text = "id,kind\n" + "".join(f"{number},{number % 2}\n" for number in range(10))
    path = table(lists / "a.csv.gz", "")
    path.write_bytes(gzip.compress(text.encode()))
    settings = Settings(images=(str(path),), root=str(tmp_path / "pics"), path_ending=".png", label_column="kind")
    with pytest.raises(UsageError, match="--path-column; columns: id, kind"):
        images.plan(settings)
    _, fields, _, _ = made(dataclasses.replace(settings, path_column="id"))
    assert sum(len(own["label"]) for own in fields.values()) == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows below its header"),
        ("path,label\n", "no rows below its header"),
        ("file_x,label\na,b\n", "--path-column; columns: file_x, label"),
        ("path,label\n0.png,a\n1.png\n", r"line 3: has 1 cells"),
        ("path,label\n0.png,a\n,b\n", "line 3: has no path"),
        ("path,label\n0.png,a\n1.png,\n", "line 3: has no label"),
        ("path,label\n0.png,a\nnone.png,b\n", r"line 3: none\.png: no such file"),
        ("path,label\n0.png,a\n0.png,b\n", r"line 3: 0\.png was listed before .*line 2.* another label"),
        ("path,label,split\n0.png,a,train\n1.png,b,tset\n", "line 3: the split is 'tset'"),
        ('path,label\n0.png,a\n"1.png,b\n', "not readable as CSV"),
    ],
)
def test_csv_rows_that_are_not_usable_are_named(tmp_path, text, message):
    for number in range(3):
        picture(tmp_path / f"{number}.png", number)
    with pytest.raises(UsageError, match=message) as error:
        images.plan(Settings(images=(str(table(tmp_path / "l.csv", text)),)))
    assert "l.csv" in str(error.value)


def test_a_list_that_is_not_utf8_is_named_with_its_line(tmp_path):
    path = table(tmp_path / "l.csv", "path,label\na.png,x\nü.png,y\n", "latin-1")
    with pytest.raises(UsageError, match=r"l\.csv: line 3: is not UTF-8"):
        images.plan(Settings(images=(str(path),)))


def test_damaged_missing_and_repeated_rows_can_be_dropped_and_are_counted(tmp_path, capsys):
    rows = ["path,label"]
    for number in range(12):
        picture(tmp_path / f"{number}.png", number * 5, size=(40, 40))
        rows.append(f"{number}.png,{number % 2}")
    path = table(tmp_path / "l.csv", "\n".join([*rows, "0.png,0", "none.png,1", "3.png,"]))
    (tmp_path / "4.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"line 15: none\.png: no such file; .*--damaged drop"):
        images.plan(Settings(images=(str(path),)))
    plan, fields, _, _ = made(Settings(images=(str(path),), damaged="drop"))
    assert sum(len(own["label"]) for own in fields.values()) == 11
    assert plan.counts == {"train": {"num_left_out": 4}}
    messages = capsys.readouterr().err
    assert "line 15" in messages
    assert "4.png: is not a picture" in messages


def test_a_picture_damaged_behind_its_head_fails_or_is_dropped_while_writing(tmp_path):
    tree(tmp_path, size=(60, 60))
    bad = tmp_path / "cat" / "picture 3.png"
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    Image.fromarray(noise).save(bad)
    truncate(bad, 0.5)
    with pytest.raises(FailedError, match=r"picture 3\.png: not readable.*--damaged drop"):
        made(Settings(images=(str(tmp_path),)))
    _, fields, contents, _ = made(Settings(images=(str(tmp_path),), damaged="drop"))
    assert sum(content.num_dropped for content in contents.values()) == 1
    assert sum(len(own["label"]) for own in fields.values()) == 19


def test_a_limit_per_class(tmp_path):
    root = tree(tmp_path, splits=("train", "test"), number=9)
    plan, fields, _, entries = made(Settings(images=(str(root),), limit_per_class=4, val_fraction=0.25))
    assert {split: len(own["label"]) for split, own in fields.items()} == {"train": 6, "val": 2, "test": 8}
    assert plan.counts == {"train": {"num_over_limit": 20}}
    other = images.plan(Settings(images=(str(root),), limit_per_class=4, val_fraction=0.25, seed=1))
    assert other.digest != plan.digest
    assert sum(entries["statistics"]["label"]["histogram"]) == 6


def test_the_digest_follows_contents_and_settings_and_not_places(tmp_path):
    first = images.plan(Settings(images=(str(tree(tmp_path / "a")),)))
    moved = images.plan(Settings(images=(str(tree(tmp_path / "b c")),)))
    assert moved.digest == first.digest
    assert images.plan(Settings(images=(str(tmp_path / "a"),), seed=1)).digest != first.digest
    assert images.plan(Settings(images=(str(tmp_path / "a"),), size_px=(4,))).digest != first.digest
    picture(tmp_path / "a" / "cat" / "picture 0.png", 777)
    assert images.plan(Settings(images=(str(tmp_path / "a"),))).digest != first.digest


def test_shards_are_small_and_always_the_same(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 200, 300), np.uint8)
    np.savez(tmp_path / "x.npz", images=pixels, labels=np.arange(40) % 2)
    plan, fields, contents, _ = made(Settings(images=(str(tmp_path / "x.npz"),), shard_mb=1, split="order"))
    assert [task.name for task in plan.shards] == ["train-00000", "train-00001", "val-00000", "test-00000"]
    again = images.make_shard(plan, plan.shards[1])
    for name, array in contents["train-00001"].fields.items():
        np.testing.assert_array_equal(again.fields[name], array)
    np.testing.assert_array_equal(fields["train"]["image"][:, 0], pixels[:32])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size_px": (1, 2, 3)}, "one number, or height and width"),
        ({"size_px": (0,)}, "of at least 1"),
        ({"shard_mb": 0}, "shard_mb is 0"),
        ({"limit_per_class": 0}, "limit_per_class is 0"),
        ({"val_fraction": 0.7, "test_fraction": 0.5}, "leave nothing to train"),
        ({"split": "given"}, "does not say which split"),
        ({"class_names": ("cat", "cat")}, "'cat' is given twice"),
        ({"class_names": ("cat", "dog")}, "has the class 'dög 2'"),
        ({"labels": ("nothing",)}, "nothing: no such file"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, changes, message):
    tree(tmp_path)
    with pytest.raises(UsageError, match=message):
        images.plan(dataclasses.replace(Settings(images=(str(tmp_path),)), **changes))


@pytest.mark.skipif(not (DATA / "images" / "mnist").is_dir(), reason="the shared MNIST files are not on this machine")
def test_mnist_in_file_order():
    _, fields, _, entries = made(Settings(images=(str(DATA / "images" / "mnist"),), split="order"))
    assert {split: own["image"].shape for split, own in fields.items()} == {
        "train": (8000, 1, 28, 28),
        "val": (1000, 1, 28, 28),
        "test": (1000, 1, 28, 28),
    }
    assert fields["train"]["label"][:5].tolist() == [7, 2, 1, 0, 4]
    assert len(entries["classes"]) == 10
