from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep import masks
from hpcdl.prep.masks import Settings
from hpcdl.raster.legend import IGNORE_INDEX
from tests.generators import truncate

DATA = Path(os.environ.get("HPCDL_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
HEART = DATA / "segmentation" / "sunnybrook"


def save(path: Path, pixels, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    (image if mode is None else image.convert(mode)).save(path)
    return path


def scene(number: int, size=(12, 16)) -> np.ndarray:
    return np.random.default_rng(number).integers(1, 256, (*size, 3), np.uint8)


def pairs(root: Path, patients=6, slices=4, values=(0, 255), size=(12, 16)) -> Settings:
    """Pictures and masks: where a mask is not the first value, the picture's red is above 128."""
    for patient in range(patients):
        for number in range(slices):
            pixels = scene(patient * 100 + number, size)
            label = np.array(values)[(pixels[..., 0].astype(int) * len(values)) // 256]
            save(root / "images" / f"part {patient % 2}" / f"p{patient}-slice {number}.png", pixels)
            save(root / "masks" / f"part {patient % 2}" / f"p{patient}-slice {number}.png", label)
    return Settings(images=(str(root / "images"),), masks=(str(root / "masks"),))


def made(settings: Settings):
    """(plan, fields of each split, contents of each shard, manifest entries)."""
    plan = masks.plan(settings)
    contents = {task.name: masks.make_shard(pickle.loads(pickle.dumps(plan)), task) for task in plan.shards}  # noqa: S301
    fields = {
        split: {
            name: np.concatenate([contents[t.name].fields[name] for t in plan.shards if t.split == split])
            for name in plan.fields
        }
        for split in dict.fromkeys(task.split for task in plan.shards)
    }
    entries = masks.manifest_entries(plan, {name: content.attributes for name, content in contents.items()})
    assert masks.summary(plan, entries)
    return plan, fields, contents, entries


def test_samples_have_the_form_of_land_cover(tmp_path):
    plan, fields, _, entries = made(pairs(tmp_path))
    assert plan.fields == {
        "image": {"dtype": "uint8", "shape": [3, 12, 16]},
        "label": {"dtype": "uint8", "shape": [12, 16]},
    }
    assert sum(len(own["label"]) for own in fields.values()) == 24
    for own in fields.values():
        np.testing.assert_array_equal(own["label"], own["image"][:, 0] >= 128)
    assert entries["classes"] == [
        {"index": 0, "code": 0, "name": "background", "color": [0, 0, 0]},
        {"index": 1, "code": 255, "name": "foreground", "color": [255, 255, 255]},
    ]
    assert entries["ignore_index"] == IGNORE_INDEX
    train = fields["train"]
    assert entries["statistics"]["label"]["histogram"] == np.bincount(train["label"].ravel()).tolist()
    np.testing.assert_allclose(entries["statistics"]["image"]["mean"], train["image"].mean(axis=(0, 2, 3)))


@pytest.mark.parametrize("group", ["^(p[0-9]+)-", "^p[0-9]+", "folder"])
def test_a_group_stays_in_one_split(tmp_path, group):
    settings = dataclasses.replace(pairs(tmp_path, patients=10), group=group)
    if group == "folder":
        settings = dataclasses.replace(settings, val_fraction=0.0, test_fraction=0.3)
    plan, _, _, _ = made(settings)
    owner: dict[str, set[str]] = {}
    for task in plan.shards:
        for image, mask, _, _ in task.items:
            path = Path(image)
            assert path.name == Path(mask).name
            owner.setdefault(path.parent.name if group == "folder" else path.name[:2], set()).add(task.split)
    assert len(owner) == (2 if group == "folder" else 10)
    assert all(len(splits) == 1 for splits in owner.values())


def test_copies_of_a_picture_join_their_groups(tmp_path):
    settings = dataclasses.replace(pairs(tmp_path, patients=12, slices=2), group="^(p[0-9]+)-", test_fraction=0.4)
    for patient in range(1, 12, 2):
        same = tmp_path / "images" / f"part {(patient - 1) % 2}" / f"p{patient - 1}-slice 0.png"
        (tmp_path / "images" / f"part {patient % 2}" / f"p{patient}-slice 1.png").write_bytes(same.read_bytes())
    plan, fields, _, _ = made(settings)
    assert sum(plan.num_groups.values()) == 6
    seen = [{image.tobytes() for image in own["image"]} for own in fields.values()]
    assert len(set.union(*seen)) == sum(map(len, seen))


def test_an_order_that_parts_copies_is_refused(tmp_path):
    settings = dataclasses.replace(pairs(tmp_path), split="order")
    plan, _, _, _ = made(settings)
    assert Path(plan.shards[-1].items[-1][0]).name == "p5-slice 3.png"
    first, last = (tmp_path / "images" / part for part in ("part 0/p0-slice 0.png", "part 1/p5-slice 3.png"))
    last.write_bytes(first.read_bytes())
    with pytest.raises(UsageError, match=r"p5-slice 3\.png: would be in test, but .*p0-slice 0\.png, a copy"):
        masks.plan(settings)


def test_names_are_paired_after_stripping_or_by_a_regular_expression(tmp_path):
    for number in range(10):
        save(tmp_path / "all" / f"tile {number}_rgb.png", scene(number))
        save(tmp_path / "all" / f"tile {number}_mask.png", scene(number)[..., 0] // 128)
    base = Settings(images=(str(tmp_path / "all" / "*_rgb.png"),), masks=(str(tmp_path / "all" / "*_mask.png"),))
    with pytest.raises(UsageError, match=r"tile 0_rgb\.png: has no partner.*'tile 0_mask'.*20 such.*--image-strip"):
        masks.plan(base)
    strip = dataclasses.replace(base, image_strip=("_rgb",), mask_strip=("_mask",))
    regex = dataclasses.replace(base, image_name="^(.*)_", mask_name="^(.*)_")
    assert made(strip)[0].digest == made(regex)[0].digest
    with pytest.raises(UsageError, match=r"--image-name '\(': not a regular expression"):
        masks.plan(dataclasses.replace(base, image_name="("))
    with pytest.raises(UsageError, match=r"matches nothing in its name 'tile 0_rgb'"):
        masks.plan(dataclasses.replace(base, image_name="zzz"))
    both = dataclasses.replace(base, images=(str(tmp_path / "all"),))
    with pytest.raises(UsageError, match="is found by --images and by --masks"):
        masks.plan(both)


def test_one_name_in_two_folders_is_told_apart_by_the_folder(tmp_path):
    for folder in ("a", "b"):
        for number in range(5):
            save(tmp_path / "i" / folder / f"{number}.png", scene(number + 10 * (folder == "b")))
            save(tmp_path / "m" / folder / f"{number}.png", scene(number + 10 * (folder == "b"))[..., 0] // 128)
    _, fields, _, _ = made(Settings(images=(str(tmp_path / "i"),), masks=(str(tmp_path / "m"),)))
    for own in fields.values():
        np.testing.assert_array_equal(own["label"], own["image"][:, 0] // 128)
    twice = Settings(images=(str(tmp_path / "i/a"), str(tmp_path / "i/b")), masks=(str(tmp_path / "m"),))
    with pytest.raises(UsageError, match="has the same name for pairing, '0'"):
        masks.plan(twice)
    both = dataclasses.replace(twice, masks=(str(tmp_path / "m/a"), str(tmp_path / "m/b")))
    assert made(both)[0].digest == made(Settings(images=(str(tmp_path / "i"),), masks=(str(tmp_path / "m"),)))[0].digest


def test_files_without_a_partner_are_refused_or_dropped_and_counted(tmp_path, capsys):
    settings = pairs(tmp_path)
    (tmp_path / "masks" / "part 0" / "p0-slice 1.png").unlink()
    with pytest.raises(UsageError, match=r"p0-slice 1\.png: has no partner.*1 such files of 47.*--unpaired drop"):
        masks.plan(settings)
    plan, _, _, _ = made(dataclasses.replace(settings, unpaired="drop"))
    assert plan.num_pairs == 23
    assert plan.counts == {"train": {"num_unpaired": 1}}
    assert "p0-slice 1.png: has no partner; left out" in capsys.readouterr().err


def test_a_mask_of_another_size_is_refused(tmp_path):
    settings = pairs(tmp_path)
    save(tmp_path / "masks" / "part 0" / "p0-slice 1.png", np.zeros((16, 12)))
    with pytest.raises(UsageError, match=r"is 16 × 12 pixels, but its picture .* is 12 × 16"):
        masks.plan(settings)


def test_several_values_are_classes_and_255_must_be_named(tmp_path):
    settings = pairs(tmp_path, values=(0, 3, 7, 255))
    with pytest.raises(UsageError, match="255 beside 3 other values; say --ignore 255"):
        masks.plan(settings)
    _, fields, _, entries = made(dataclasses.replace(settings, ignore=("255",)))
    assert [(entry["code"], entry["name"]) for entry in entries["classes"]] == [
        (0, "value 0"), (3, "value 3"), (7, "value 7"),
    ]  # fmt: skip
    red = fields["train"]["image"][:, 0].astype(int)
    np.testing.assert_array_equal(fields["train"]["label"], np.array([0, 1, 2, 255])[red * 4 // 256])


def test_named_classes_and_unknown_values(tmp_path):
    settings = dataclasses.replace(pairs(tmp_path, values=(0, 3, 7)), classes=("7:tumour", "0:rest"))
    with pytest.raises(UsageError, match=r"the values 3 \([0-9]+ pixels\), which are no class.*--ignore 3"):
        masks.plan(settings)
    _, fields, _, entries = made(dataclasses.replace(settings, unknown="ignore"))
    red = fields["train"]["image"][:, 0].astype(int)
    np.testing.assert_array_equal(fields["train"]["label"], np.array([1, 255, 0])[red * 3 // 256])
    assert [entry["name"] for entry in entries["classes"]] == ["tumour", "rest"]


def test_a_yaml_legend_merges_values(tmp_path):
    legend = tmp_path / "legend.yaml"
    body = {
        "classes": [
            {"code": 1, "name": "ground", "color": "#102030", "from": [0, 3]},
            {"code": 7, "name": "tree", "color": "#00ff00"},
        ],
        "ignore": [9],
    }
    legend.write_text(yaml.safe_dump(body))
    settings = dataclasses.replace(pairs(tmp_path, values=(0, 3, 7, 9)), classes=(str(legend),))
    _, fields, _, entries = made(settings)
    red = fields["train"]["image"][:, 0].astype(int)
    np.testing.assert_array_equal(fields["train"]["label"], np.array([0, 0, 1, 255])[red * 4 // 256])
    assert entries["classes"][0] == {"index": 0, "code": 1, "name": "ground", "color": [16, 32, 48], "from": [0, 3]}


def colored(root: Path) -> Settings:
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]])
    for number in range(10):
        pixels = scene(number)
        save(root / "i" / f"{number}.png", pixels)
        save(root / "m" / f"{number}.png", colors[pixels[..., 0].astype(int) * 3 // 256])
    save(root / "i" / "black.png", scene(99))
    save(root / "m" / "black.png", np.zeros((12, 16, 3)))
    return Settings(images=(str(root / "i"),), masks=(str(root / "m"),))


def test_coloured_masks(tmp_path):
    settings = colored(tmp_path)
    _, _, _, entries = made(settings)
    assert [(entry["name"], entry["color"]) for entry in entries["classes"]] == [
        ("#000000", [0, 0, 0]), ("#0000ff", [0, 0, 255]), ("#ff0000", [255, 0, 0]),
    ]  # fmt: skip
    named = dataclasses.replace(settings, classes=("#ff0000:road", "#000000:rest"), ignore=("#0000ff",))
    _, fields, _, entries = made(named)
    assert [entry["code"] for entry in entries["classes"]] == [0, 1]
    labels = np.concatenate([own["label"] for own in fields.values()])
    assert set(np.unique(labels)) == {0, 1, 255}
    with pytest.raises(UsageError, match=r"the colours #0000ff \([0-9]+ pixels\)"):
        masks.plan(dataclasses.replace(named, ignore=()))
    with pytest.raises(UsageError, match="is coloured; give its classes"):
        masks.plan(dataclasses.replace(settings, classes=("0:a", "255:b")))
    legend = tmp_path / "l.yaml"
    classes = [{"code": n, "name": c, "color": c} for n, c in enumerate(("#000000", "#ff0000", "#0000ff"))]
    legend.write_text(yaml.safe_dump({"classes": classes}))
    assert [e["code"] for e in made(dataclasses.replace(settings, classes=(str(legend),)))[3]["classes"]] == [0, 1, 2]


def test_palette_masks_keep_their_indices(tmp_path):
    for number in range(10):
        pixels = scene(number)
        save(tmp_path / "i" / f"{number}.png", pixels)
        mask = Image.fromarray((pixels[..., 0] // 128).astype(np.uint8), mode=None)
        image = Image.frombytes("P", mask.size, mask.tobytes())
        image.putpalette([0, 0, 0, 128, 0, 0])
        (tmp_path / "m").mkdir(exist_ok=True)
        image.save(tmp_path / "m" / f"{number}.png")
    settings = Settings(images=(str(tmp_path / "i"),), masks=(str(tmp_path / "m"),))
    by_color = dataclasses.replace(settings, classes=("#000000:rest", "#800000:road"))
    for way in (settings, by_color, dataclasses.replace(settings, classes=("0:rest", "1:road"))):
        _, fields, _, entries = made(way)
        assert [entry["code"] for entry in entries["classes"]] == [0, 1]
        np.testing.assert_array_equal(fields["train"]["label"], fields["train"]["image"][:, 0] // 128)


def test_blurred_masks_need_a_threshold(tmp_path):
    for number in range(10):
        save(tmp_path / "i" / f"{number}.png", scene(number))
        save(tmp_path / "m" / f"{number}.png", scene(number)[..., 0])
    settings = Settings(images=(str(tmp_path / "i"),), masks=(str(tmp_path / "m"),))
    with pytest.raises(UsageError, match=r"different values, from 1 to 255: blurred.*--threshold 128"):
        masks.plan(settings)
    _, fields, _, entries = made(dataclasses.replace(settings, threshold=100))
    np.testing.assert_array_equal(fields["train"]["label"], fields["train"]["image"][:, 0] >= 100)
    assert [entry["name"] for entry in entries["classes"]] == ["background", "foreground"]


@pytest.mark.parametrize("how", ["stretch", "crop", "pad"])
def test_resizing_keeps_labels_on_their_pixels(tmp_path, how):
    for number in range(10):
        half = np.zeros((20, 40), np.uint8)
        half[:, 20:] = 255
        half[0, 0] = number
        save(tmp_path / "i" / f"{number}.png", half)
        save(tmp_path / "m" / f"{number}.png", np.where(half > 100, 2, 1))
    settings = Settings(images=(str(tmp_path / "i"),), masks=(str(tmp_path / "m"),), size_px=(16,), resize=how)
    _, fields, _, entries = made(settings)
    image, label = fields["train"]["image"][0, 0].astype(int), fields["train"]["label"][0]
    labelled = label != IGNORE_INDEX
    assert labelled.all() == (how != "pad")
    if how == "pad":
        assert not labelled[:4].any()
        assert not labelled[12:].any()
        assert entries["statistics"]["image"]["count"] == [16 * 8 * len(fields["train"]["label"])]
    wrong = ((image > 127) != (label == 1)) & labelled
    assert wrong.mean() < 0.1


def test_tiles_cover_every_pixel_and_small_pictures_are_padded(tmp_path):
    for number in range(10):
        size = (20, 30) if number else (5, 30)
        save(tmp_path / "i" / f"{number}.png", scene(number, size))
        save(tmp_path / "m" / f"{number}.png", scene(number, size)[..., 0] // 128)
    settings = Settings(
        images=(str(tmp_path / "i"),), masks=(str(tmp_path / "m"),), size_px=(8,), resize="tile", stride_px=8
    )
    plan, fields, _, _ = made(settings)
    assert sum(len(task.items) for task in plan.shards) == 9 * 3 * 4 + 4
    for task in plan.shards:
        for image, _, top, left in task.items:
            assert top in ((0,) if image.endswith("0.png") else (0, 8, 12))
            assert left in (0, 8, 16, 22)
    padded = 0
    for own in fields.values():
        known = own["label"] != IGNORE_INDEX
        np.testing.assert_array_equal(own["label"][known], (own["image"][:, 0] // 128)[known])
        padded += (~known).sum()
    assert padded == 4 * 3 * 8
    owners = {
        image: {task.split for task in plan.shards for i, *_ in task.items if i == image}
        for image, *_ in plan.shards[0].items
    }
    assert all(len(splits) == 1 for splits in owners.values())


def test_samples_without_labels_are_dropped_and_counted(tmp_path):
    settings = dataclasses.replace(pairs(tmp_path, values=(0, 1, 9)), ignore=("9",))
    save(tmp_path / "masks" / "part 0" / "p0-slice 0.png", np.full((12, 16), 9))
    _, _, contents, _ = made(settings)
    assert sum(content.num_dropped for content in contents.values()) == 1
    _, _, contents, _ = made(dataclasses.replace(settings, min_valid=0.99))
    assert sum(content.num_dropped for content in contents.values()) == 24
    assert all(content.fields["label"].shape[1:] == (12, 16) for content in contents.values())


def test_damaged_files_are_refused_or_dropped(tmp_path, capsys):
    settings = pairs(tmp_path, size=(64, 64))
    truncate(tmp_path / "masks" / "part 0" / "p0-slice 0.png", 0.5)
    (tmp_path / "images" / "part 1" / "p1-slice 0.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"p1-slice 0\.png: is empty.*--damaged drop"):
        masks.plan(settings)
    (tmp_path / "images" / "part 1" / "p1-slice 0.png").write_bytes(
        (tmp_path / "images" / "part 1" / "p1-slice 1.png").read_bytes()
    )
    with pytest.raises(UsageError, match=r"masks.*p0-slice 0\.png: not readable.*--damaged drop"):
        masks.plan(settings)
    plan, _, _, _ = made(dataclasses.replace(settings, damaged="drop"))
    assert plan.num_pairs == 23
    assert plan.counts["train"] == {"num_damaged": 1}
    assert "left out" in capsys.readouterr().err


def test_a_picture_damaged_behind_its_head_is_named_while_writing(tmp_path):
    settings = pairs(tmp_path, size=(64, 64))
    truncate(tmp_path / "images" / "part 0" / "p0-slice 0.png", 0.5)
    with pytest.raises(FailedError, match=r"p0-slice 0\.png: not readable.*--damaged drop"):
        made(settings)
    _, fields, contents, _ = made(dataclasses.replace(settings, damaged="drop"))
    assert sum(content.num_dropped for content in contents.values()) == 1
    assert sum(len(own["label"]) for own in fields.values()) == 23


def test_a_mask_changed_after_planning_is_refused(tmp_path):
    plan = masks.plan(pairs(tmp_path))
    first = plan.shards[0].items[0][1]
    save(Path(first), np.full((12, 16), 77))
    with pytest.raises(FailedError, match=r"the values 77 \(192 pixels\)"):
        masks.make_shard(plan, plan.shards[0])


def test_the_digest_follows_contents_and_settings_and_not_places(tmp_path):
    first = masks.plan(pairs(tmp_path / "a"))
    assert masks.plan(pairs(tmp_path / "b c")).digest == first.digest
    for changes in ({"seed": 1}, {"mode": "gray"}, {"classes": ("0:a", "255:b")}, {"size_px": (8,)}):
        assert masks.plan(dataclasses.replace(pairs(tmp_path / "a"), **changes)).digest != first.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_mb": 0}, "shard_mb is 0"),
        ({"threshold": 0}, "threshold is 0"),
        ({"threshold": 256}, "--threshold 256 does not part them"),
        ({"threshold": 3, "classes": ("0:a", "1:b")}, "leave out --classes"),
        ({"stride_px": 4}, "stride_px goes with --resize tile"),
        ({"resize": "tile"}, "give --size-px"),
        ({"min_valid": 2.0}, "min_valid is 2.0"),
        ({"split": "order", "group": "folder"}, "which parts groups"),
        ({"group": "zzz"}, "matches nothing in its name"),
        ({"classes": ("0",)}, "write VALUE:NAME"),
        ({"classes": ("x:a", "1:b")}, "a value is a whole number"),
        ({"classes": ("0:a", "0:b")}, "two classes have the value or colour 0"),
        ({"classes": ("0:a", "1:a")}, "two classes have the name 'a'"),
        ({"classes": ("0:a", "#ff0000:b")}, "values and colours are mixed"),
        ({"classes": ("0:a",)}, "1 classes; 2 to 255"),
        ({"ignore": ("white",)}, "--ignore 'white'"),
        ({"ignore": ("255",)}, "hold 0 only; two classes are needed"),
        ({"test_fraction": 1.5}, "test_fraction is 1.5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        masks.plan(dataclasses.replace(pairs(tmp_path), **changes))


@pytest.mark.skipif(not HEART.is_dir(), reason="the shared Sunnybrook pictures are not on this machine")
def test_sunnybrook_has_526_pairs_of_30_patients():
    settings = Settings(
        images=(str(HEART / "Images"),), masks=(str(HEART / "Labels"),), group="^(.*)-IM", mode="gray", shard_mb=4
    )
    plan = masks.plan(settings)
    assert plan.num_pairs == 526
    assert sum(plan.num_groups.values()) == 30
    assert plan.fields["image"] == {"dtype": "uint8", "shape": [1, 256, 256]}
    patients = {
        split: {
            Path(item[0]).name.split("-IM")[0] for task in plan.shards if task.split == split for item in task.items
        }
        for split in ("train", "val", "test")
    }
    assert not patients["train"] & patients["test"]
    assert not patients["train"] & patients["val"]
    content = masks.make_shard(plan, plan.shards[0])
    assert set(np.unique(content.fields["label"])) == {0, 1}
    assert 0.005 < content.fields["label"].mean() < 0.05
