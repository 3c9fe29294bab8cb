from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.warp import transform
from rasterio.windows import Window

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep import pairs
from hpcdl.prep.pairs import Settings
from hpcdl.prep.pictures.reading import read_picture
from hpcdl.prep.pictures.resizing import resize_picture
from tests.generators import UTM, image_affine, truncate, write_raster

DATA = Path(os.environ.get("HPCDL_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def noise(number: int, size=(40, 56), channels=3) -> np.ndarray:
    """Random, but smooth enough that shrinking leaves something."""
    draw = np.random.default_rng(number).integers(0, 256, (size[0] // 4 + 1, size[1] // 4 + 1, channels), np.uint8)
    return draw.repeat(4, axis=0).repeat(4, axis=1)[: size[0], : size[1]]


def save(path: Path, pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(pixels, np.uint8)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
    return path


def folder(root: Path, number=10, first=0, name="picture", **options) -> Path:
    for place in range(number):
        save(root / f"{name} {place}.png", noise(first + place, **options))
    return root


def made(settings: Settings):
    """(plan, fields of each split, contents of each shard, manifest entries)."""
    plan = pairs.plan(settings)
    contents = {task.name: pairs.make_shard(pickle.loads(pickle.dumps(plan)), task) for task in plan.shards}  # noqa: S301
    fields = {
        split: {
            name: np.concatenate([contents[t.name].fields[name] for t in plan.shards if t.split == split])
            for name in plan.fields
        }
        for split in dict.fromkeys(task.split for task in plan.shards)
    }
    for own in fields.values():
        for name, array in own.items():
            assert list(array.shape[1:]) == plan.fields[name]["shape"]
            assert array.dtype == plan.fields[name]["dtype"]
    entries = pairs.manifest_entries(plan, {name: content.attributes for name, content in contents.items()})
    assert pairs.summary(plan, entries)
    return plan, fields, contents, entries


def items(plan):
    return [(task.split, *item) for task in plan.shards for item in task.items]


# Super-resolution


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_low_resolution_patches_are_those_of_the_whole_picture(tmp_path, factor):
    high = folder(tmp_path / "HR", size=(53, 70))
    patch = factor * 5
    plan, fields, _, entries = made(Settings(high=(str(high),), factor=factor, patch_px=patch, stride_px=2 * factor))
    assert entries["factor"] == factor
    whole = {}
    for path in high.iterdir():
        pixels = read_picture(path)
        rows, cols = 53 // factor * factor, 70 // factor * factor
        small = resize_picture(pixels[:, :rows, :cols], rows // factor, cols // factor, "stretch", "bicubic")
        whole[str(path)] = pixels, small
    place = dict.fromkeys(fields, 0)
    for split, part, partner in items(plan):
        assert partner is None
        (row, col, height, width), (pixels, small) = part.box, whole[part.path]
        number, place[split] = place[split], place[split] + 1
        assert (height, width) == (patch, patch)
        np.testing.assert_array_equal(fields[split]["high"][number], pixels[:, row : row + patch, col : col + patch])
        window = small[:, row // factor :, col // factor :][:, :5, :5]
        np.testing.assert_array_equal(fields[split]["low"][number], window)
    # Every pixel of the cropped picture is in a patch.
    covered = np.zeros((53, 70), bool)
    for _, part, _ in items(plan):
        if part.path.endswith("picture 0.png"):
            covered[part.box[0] : part.box[0] + patch, part.box[1] : part.box[1] + patch] = True
    assert covered.sum() == (53 // factor * factor) * (70 // factor * factor)
    owners = {}
    for split, part, _ in items(plan):
        owners.setdefault(part.path, set()).add(split)
    assert all(len(splits) == 1 for splits in owners.values())
    train = fields["train"]["low"].astype(float)
    np.testing.assert_allclose(entries["statistics"]["low"]["mean"], train.mean(axis=(0, 2, 3)))


def test_given_low_resolution_is_paired_by_name(tmp_path):
    for number in range(10):
        pixels = noise(number, (40, 56))
        save(tmp_path / "all" / f"img_{number}_HR.png", pixels)
        save(tmp_path / "all" / f"img_{number}_LR.png", pixels[::4, ::4])
    settings = Settings(
        high=(str(tmp_path / "all" / "*_HR.png"),),
        low=(str(tmp_path / "all" / "*_LR.png"),),
        pair_strip=("_HR", "_LR"),
        patch_px=16,
    )
    _, fields, _, _ = made(settings)
    for own in fields.values():
        np.testing.assert_array_equal(own["low"], own["high"][:, :, ::4, ::4])
    with pytest.raises(UsageError, match=r"10 × 14 pixels.*40 × 56: not 2 times.*looks like 4"):
        pairs.plan(dataclasses.replace(settings, factor=2))
    with pytest.raises(UsageError, match=r"has no partner.*--pair-strip"):
        pairs.plan(dataclasses.replace(settings, pair_strip=()))


def test_whole_pictures_of_one_size_need_no_patches(tmp_path):
    high = folder(tmp_path / "a", size=(42, 30))
    plan, fields, _, _ = made(Settings(high=(str(high),)))
    assert fields["train"]["high"].shape == (8, 3, 40, 28)
    assert plan.fields["low"]["shape"] == [3, 10, 7]
    save(high / "other.png", noise(99, (60, 60)))
    with pytest.raises(UsageError, match=r"is .* pixels, but .*; cut patches with --patch-px"):
        pairs.plan(Settings(high=(str(high),)))


def test_pictures_smaller_than_a_patch_are_told_and_counted(tmp_path, capsys):
    high = folder(tmp_path / "a")
    save(high / "tiny.png", noise(50, (10, 10)))
    plan, _, _, _ = made(Settings(high=(str(high),), patch_px=32, val_fraction=0.3, test_fraction=0.3))
    assert sum(counts.get("num_small_high", 0) for counts in plan.counts.values()) == 1
    assert "tiny.png: its" in capsys.readouterr().err
    with pytest.raises(UsageError, match="the train split gets no samples; give smaller patches"):
        pairs.plan(Settings(high=(str(high),), patch_px=400))


def test_one_picture_is_cut_into_strips_that_do_not_look_at_each_other(tmp_path):
    path = save(tmp_path / "big.png", noise(3, (64, 200)))
    plan, fields, _, entries = made(Settings(high=(str(path),), patch_px=16, val_fraction=0.2, test_fraction=0.2))
    assert entries["strips"] == {
        "across": "columns",
        "high": [{"train": [0, 0, 64, 120], "val": [0, 120, 64, 160], "test": [0, 160, 64, 200]}],
    }
    for split, part, _ in items(plan):
        low, high = {"train": (0, 120), "val": (120, 160), "test": (160, 200)}[split]
        assert low <= part.box[1]
        assert part.box[1] + 16 <= high
    strip = read_picture(path)[:, :, 120:160]
    small = resize_picture(strip, 16, 10, "stretch", "bicubic")
    np.testing.assert_array_equal(fields["val"]["low"][0], small[:, :4, :4])


# Two domains without pairs


def test_the_shorter_domain_is_repeated(tmp_path):
    a, b = folder(tmp_path / "a", 10), folder(tmp_path / "b", 25, first=100, name="other")
    plan, fields, _, entries = made(Settings(a=(str(a),), b=(str(b),), val_fraction=0.2, test_fraction=0.2))
    assert entries["domains"] == {"a": 10, "b": 25}
    assert plan.counts["train"] == {"num_distinct_a": 6, "num_distinct_b": 15}
    assert fields["train"]["a"].shape == fields["train"]["b"].shape == (15, 3, 40, 56)
    for name, number in (("a", 6), ("b", 15)):
        distinct = [array.tobytes() for array in fields["train"][name]]
        assert len(set(distinct)) == number
        assert max(map(distinct.count, distinct)) <= 3
    for name in ("a", "b"):
        seen = [{array.tobytes() for array in own[name]} for own in fields.values()]
        assert len(set.union(*seen)) == sum(map(len, seen))


def test_domains_may_have_different_channels_and_are_resized(tmp_path):
    a, b = folder(tmp_path / "a", channels=1), folder(tmp_path / "b", first=50, size=(30, 90))
    save(b / "picture 3.png", noise(77, (31, 90)))
    with pytest.raises(UsageError, match=r"31 × 90 pixels, but .*; resize them with --size-px, or cut patches"):
        pairs.plan(Settings(a=(str(a),), b=(str(b),)))
    plan, _, _, entries = made(Settings(a=(str(a),), b=(str(b),), size_px=(16, 24), resize="pad"))
    assert plan.fields["a"]["shape"] == [1, 16, 24]
    assert plan.fields["b"]["shape"] == [3, 16, 24]
    assert entries["statistics"]["b"]["count"][0] < 8 * 16 * 24


def test_one_name_in_both_domains_is_one_place(tmp_path):
    a, b = folder(tmp_path / "a", 20), folder(tmp_path / "b", 20, first=100)
    plan, _, _, _ = made(Settings(a=(str(a),), b=(str(b),), val_fraction=0.2, test_fraction=0.2))
    owner: dict[str, set[str]] = {}
    for split, first, second in items(plan):
        owner.setdefault(Path(first.path).name, set()).add(split)
        owner.setdefault(Path(second.path).name, set()).add(split)
    assert len(owner) == 20
    assert all(len(splits) == 1 for splits in owner.values())


def test_overlapping_scenes_of_both_domains_stay_in_one_split(tmp_path):
    for number in range(12):
        corner = (300_000.0 + number * 10_000, 4_150_000.0)
        for name, shift in (("a", 0.0), ("b", 300.0)):
            affine = image_affine(corner=(corner[0] + shift, corner[1] - shift))
            write_raster(
                tmp_path / name / f"{name}{number}.tif", noise(number, (32, 32), 5).transpose(2, 0, 1), affine, UTM
            )
    plan, fields, _, _ = made(
        Settings(a=(str(tmp_path / "a"),), b=(str(tmp_path / "b"),), val_fraction=0.2, test_fraction=0.3)
    )
    assert fields["train"]["a"].shape[1] == 5
    owner: dict[str, set[str]] = {}
    for split, first, second in items(plan):
        owner.setdefault(Path(first.path).stem[1:], set()).add(split)
        owner.setdefault(Path(second.path).stem[1:], set()).add(split)
    assert len(owner) == 12
    assert all(len(splits) == 1 for splits in owner.values())


@pytest.mark.parametrize("georeferenced", [True, False])
def test_one_scene_a_domain_is_cut_at_the_same_places(tmp_path, georeferenced):
    ground = noise(7, (48, 200), 4).transpose(2, 0, 1)
    if georeferenced:
        # b shows the same ground from pixel 10 on: what is column 110 of a is column 100 of b.
        a = write_raster(tmp_path / "a.tif", ground, image_affine(), UTM)
        shifted = image_affine(corner=(300_000.0 + 10 * 30, 4_150_000.0))
        b = write_raster(tmp_path / "b.tif", ground[:, :, 10:], shifted, UTM)
        offset = 10
    else:
        a, b = (
            save(tmp_path / "a.png", ground.transpose(1, 2, 0)),
            save(tmp_path / "b.png", 255 - ground.transpose(1, 2, 0)),
        )
        offset = 0
    settings = Settings(a=(str(a),), b=(str(b),), patch_px=16, stride_px=8, val_fraction=0.2, test_fraction=0.2)
    plan, fields, _, entries = made(settings)
    assert entries["strips"]["across"] == "columns"
    place: dict[str, set[int]] = {"train": set(), "val": set(), "test": set()}
    for split, first, second in items(plan):
        for part, shift in ((first, 0), (second, offset)):
            place[split] |= set(range(part.box[1] + shift, part.box[1] + part.box[3] + shift))
    assert place["train"] == set(range(120))
    assert place["val"] == set(range(120, 160))
    assert place["test"] == set(range(160, 200))
    # Shuffled: samples do not show the same place in both.
    assert any(first.box != second.box for _, first, second in items(plan))
    assert plan.fields["a"]["shape"] == [4, 16, 16]
    first = plan.shards[0].items[0][1].box
    row, col = first[0], first[1] + offset
    expected = ground[:, row : row + 16, col : col + 16]
    np.testing.assert_array_equal(fields["train"]["b"][0], expected if georeferenced else 255 - expected)


def test_strips_need_patches(tmp_path):
    a, b = save(tmp_path / "a.png", noise(1)), save(tmp_path / "b.png", noise(2))
    with pytest.raises(UsageError, match="give the size of patches with --patch-px"):
        pairs.plan(Settings(a=(str(a),), b=(str(b),)))


@pytest.mark.parametrize("georeferenced", [True, False])
def test_strips_of_odd_lengths_lose_no_pixel(tmp_path, georeferenced):
    for name in ("a", "b"):
        pixels = noise(ord(name), (20, 97), 1)
        if georeferenced:
            write_raster(tmp_path / f"{name}.tif", pixels.transpose(2, 0, 1), image_affine(), UTM)
        else:
            save(tmp_path / f"{name}.png", pixels)
    ending = "tif" if georeferenced else "png"
    plan = pairs.plan(Settings(a=(str(tmp_path / f"a.{ending}"),), b=(str(tmp_path / f"b.{ending}"),), patch_px=4))
    for name in ("a", "b"):
        areas = plan.entries["strips"][name][0]
        assert [areas[split][1::2] for split in ("train", "val", "test")] == [[0, 78], [78, 87], [87, 97]]


def test_scenes_in_two_coordinate_systems_are_refused_for_strips(tmp_path):
    a = write_raster(tmp_path / "a.tif", noise(1).transpose(2, 0, 1), image_affine(), UTM)
    b = write_raster(
        tmp_path / "b.tif", noise(2).transpose(2, 0, 1), image_affine(corner=(305_000.0, 4_150_000.0)), "EPSG:32613"
    )
    far = pairs.plan(Settings(a=(str(a),), b=(str(b),), patch_px=4))
    assert far.entries["strips"]["a"] == far.entries["strips"]["b"]  # they do not overlap, so nothing can leak
    b.unlink()
    xs, ys = transform(UTM, "EPSG:32613", [300_000.0], [4_150_000.0])
    write_raster(b, noise(2).transpose(2, 0, 1), image_affine(corner=(xs[0], ys[0])), "EPSG:32613")
    with pytest.raises(UsageError, match=r"b\.tif: has another coordinate system than"):
        pairs.plan(Settings(a=(str(a),), b=(str(b),), patch_px=4))


def test_an_order_that_parts_one_place_is_refused(tmp_path):
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b", 20, first=100)
    with pytest.raises(UsageError, match=r"would be in (val|test|train), but .*the same place.*--split random"):
        pairs.plan(Settings(a=(str(a),), b=(str(b),), split="order"))
    plan, _, _, _ = made(Settings(high=(str(a),), split="order", patch_px=16))
    assert {Path(part.path).name for split, part, _ in items(plan) if split == "test"} == {"picture 9.png"}


def test_a_picture_in_both_domains_is_refused(tmp_path):
    a = folder(tmp_path / "a")
    with pytest.raises(UsageError, match="is found by --a and by --b"):
        pairs.plan(Settings(a=(str(a),), b=(str(a),)))


# Two domains paired by name


@pytest.mark.parametrize("patch_px", [None, 12])
def test_paired_pictures(tmp_path, patch_px):
    for number in range(10):
        pixels = noise(number)
        save(tmp_path / "A" / f"{number}.png", pixels)
        save(tmp_path / "B" / f"{number}_label.png", 255 - pixels)
    settings = Settings(
        a=(str(tmp_path / "A"),), b=(str(tmp_path / "B"),), paired=True, pair_strip=("_label",), patch_px=patch_px
    )
    _, fields, _, entries = made(settings)
    assert "domains" not in entries
    for own in fields.values():
        np.testing.assert_array_equal(own["b"], 255 - own["a"])
    (tmp_path / "B" / "3_label.png").unlink()
    with pytest.raises(UsageError, match=r"3\.png: has no partner.*--unpaired drop"):
        pairs.plan(settings)
    plan, _, _, _ = made(dataclasses.replace(settings, unpaired="drop"))
    assert plan.counts["train"]["num_unpaired"] == 1
    save(tmp_path / "B" / "4_label.png", noise(4, (56, 40)))
    with pytest.raises(UsageError, match=r"56 × 40 pixels, but .* is 40 × 56"):
        pairs.plan(dataclasses.replace(settings, unpaired="drop"))


def test_paired_pictures_of_different_sizes_can_be_resized(tmp_path):
    a, b = folder(tmp_path / "A"), folder(tmp_path / "B", size=(20, 28))
    _, fields, _, _ = made(Settings(a=(str(a),), b=(str(b),), paired=True, size_px=(20, 28)))
    assert fields["train"]["a"].shape == fields["train"]["b"].shape


# All of them


def test_patches_without_data_are_left_out_and_counted(tmp_path):
    for name in ("a", "b"):
        pixels = np.maximum(noise(ord(name), (32, 160), 2), 1).transpose(2, 0, 1)
        pixels[:, :, :24] = 0
        write_raster(tmp_path / f"{name}.tif", pixels, image_affine(), UTM, nodata=0)
    a, b = str(tmp_path / "a.tif"), str(tmp_path / "b.tif")
    settings = Settings(a=(a,), b=(b,), patch_px=16, min_valid=0.5, val_fraction=0.2, test_fraction=0.2)
    plan, fields, _, entries = made(settings)
    assert plan.counts["train"]["num_blank_a"] == plan.counts["train"]["num_blank_b"] == 2
    assert entries["domains"]["a"] == 18
    assert min((array != 0).any(axis=0).mean() for own in fields.values() for array in own["b"]) == 0.5
    everything = images_of(made(dataclasses.replace(settings, min_valid=0.0))[1])
    assert len(everything) == 20
    with rasterio.open(b, "r+") as dataset:
        dataset.write(np.zeros((2, 16, 16), np.uint8), window=Window(80, 0, 16, 16))
    paired = made(dataclasses.replace(settings, paired=True, split="region", pair_name="^()"))[0]
    assert paired.counts["train"]["num_blank_a"] == 3


def images_of(fields):
    return [array for own in fields.values() for array in own["a"]]


def test_damaged_pictures_fail_or_are_dropped(tmp_path, capsys):
    high = folder(tmp_path / "a", 12, size=(80, 80))
    (high / "picture 3.png").write_bytes(b"nothing")
    settings = Settings(high=(str(high),), patch_px=40)
    with pytest.raises(UsageError, match=r"picture 3\.png: is not a picture.*--damaged drop"):
        pairs.plan(settings)
    truncate(high / "picture 5.png", 0.6)
    plan, fields, contents, _ = made(dataclasses.replace(settings, damaged="drop"))
    assert plan.counts["train"]["num_damaged"] == 1
    assert sum(content.num_dropped for content in contents.values()) == 4
    assert sum(len(own["low"]) for own in fields.values()) == 40
    assert "picture 5.png: not readable" in capsys.readouterr().err
    (high / "picture 3.png").unlink()
    with pytest.raises(FailedError, match=r"picture 5\.png: not readable.*--damaged drop"):
        made(settings)


def test_the_digest_follows_contents_and_settings_and_not_places(tmp_path):
    settings = Settings(high=(str(folder(tmp_path / "a")),), patch_px=16)
    first = pairs.plan(settings)
    moved = folder(tmp_path / "b c")
    assert pairs.plan(dataclasses.replace(settings, high=(str(moved),))).digest == first.digest
    for changes in ({"seed": 1}, {"mode": "gray"}, {"factor": 2}, {"stride_px": 8}, {"patch_px": 20}):
        assert pairs.plan(dataclasses.replace(settings, **changes)).digest != first.digest


def test_a_shard_is_the_same_every_time(tmp_path):
    a, b = folder(tmp_path / "a", 20), folder(tmp_path / "b", 10, first=100)
    plan, _, contents, _ = made(Settings(a=(str(a),), b=(str(b),), patch_px=16, stride_px=2, shard_mb=1))
    assert len(plan.shards) > 3
    for task in plan.shards[::2]:
        again = pairs.make_shard(plan, task)
        for name, array in contents[task.name].fields.items():
            np.testing.assert_array_equal(again.fields[name], array)
        for name, value in contents[task.name].attributes.items():
            np.testing.assert_array_equal(again.attributes[name], value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"high": ()}, "either --high"),
        ({"a": ("x",)}, "either --high"),
        ({"high": (), "a": ("x",)}, "needs both domains"),
        ({"high": (), "low": ("x",)}, "either --high|--low needs --high"),
        ({"patch_px": 0}, "patch_px is 0"),
        ({"patch_px": 18}, "patch_px is 18; it must be a multiple of the factor, 4"),
        ({"patch_px": 16, "stride_px": 5}, "stride_px is 5; it must be a multiple"),
        ({"stride_px": 4}, "--stride-px needs --patch-px"),
        ({"factor": 1}, "factor is 1"),
        ({"size_px": (8,)}, "--size-px go with --a and --b"),
        ({"paired": True}, "--paired and"),
        ({"shard_mb": 0}, "shard_mb is 0"),
        ({"val_fraction": 0.8, "test_fraction": 0.4}, "leave nothing to train"),
        ({"high": ("/nowhere/x",)}, "no such file or folder"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, changes, message):
    settings = Settings(high=(str(folder(tmp_path / "a")),))
    with pytest.raises(UsageError, match=message):
        pairs.plan(dataclasses.replace(settings, **changes))


@pytest.mark.skipif(not (DATA / "superres" / "set14").is_dir(), reason="the shared Set14 is not on this machine")
def test_set14_with_its_own_low_resolution():
    base = DATA / "superres" / "set14"
    settings = Settings(
        high=(str(base / "*_HR.png"),),
        low=(str(base / "*_LR.png"),),
        pair_strip=("_HR", "_LR"),
        patch_px=96,
        mode="rgb",
        shard_mb=4,
    )
    plan = pairs.plan(settings)
    content = pairs.make_shard(plan, plan.shards[0])
    made_here = pairs.plan(dataclasses.replace(settings, low=()))
    assert [item[0] for item in made_here.shards[0].items] == [item[0] for item in plan.shards[0].items]
    own = pairs.make_shard(made_here, made_here.shards[0])
    np.testing.assert_array_equal(content.fields["high"], own.fields["high"])
    difference = content.fields["low"].astype(int) - own.fields["low"].astype(int)
    assert np.abs(difference).mean() < 1
    with pytest.raises(UsageError, match="--mode gray or --mode rgb"):
        pairs.plan(dataclasses.replace(settings, mode="keep"))


@pytest.mark.skipif(not (DATA / "unpaired").is_dir(), reason="the shared Peru scenes are not on this machine")
def test_the_peru_scenes_are_four_bands_cut_into_strips():
    settings = Settings(
        a=(str(DATA / "unpaired" / "peru_1985"),), b=(str(DATA / "unpaired" / "peru_2020"),), patch_px=64, stride_px=64
    )
    plan = pairs.plan(settings)
    assert plan.fields["a"] == {"dtype": "uint8", "shape": [4, 64, 64]}
    assert plan.entries["strips"]["a"] == plan.entries["strips"]["b"]
    content = pairs.make_shard(plan, plan.shards[-1])
    assert content.fields["b"].std() > 5
