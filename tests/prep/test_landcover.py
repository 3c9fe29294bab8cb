from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep import landcover
from hpcdl.prep.landcover import Settings
from hpcdl.raster.legend import IGNORE_INDEX
from hpcdl.raster.scene import open_scenes
from hpcdl.shards.writer import write_shard_file
from tests.generators import (
    CODES,
    UTM,
    image_affine,
    labels_file,
    landcover_files,
    truncate,
    write_raster,
)


def settings_for(folder: Path, **changes) -> Settings:
    files = landcover_files(folder)
    base = Settings(
        images=(files.glob,), labels=str(files.labels), chip_px=16, test_region="east:0.3", val_fraction=0.0, shard_mb=1
    )
    return dataclasses.replace(base, **changes)


def write(plan, task, path: Path) -> None:
    content = landcover.make_shard(plan, task)
    write_shard_file(path, content.fields, {"num_dropped": content.num_dropped, **content.attributes})


def write_all(plan, folder: Path):
    attributes, arrays = {}, {}
    for task in plan.shards:
        path = folder / f"{task.name}.h5"
        write(pickle.loads(pickle.dumps(plan)), task, path)  # noqa: S301
        with h5py.File(path) as file:
            attributes[task.name] = dict(file.attrs)
            arrays[task.name] = {name: file[name][:] for name in file}
    return attributes, arrays


def test_chips_are_windows_of_one_whole_read(tmp_path):
    settings = settings_for(tmp_path, stride_px=9)
    plan = landcover.plan(settings)
    assert plan.grid.offset_in(plan.labels.grid) is not None  # the labels' own pixels
    attributes, arrays = write_all(plan, tmp_path)
    grid = plan.grid
    image, valid = open_scenes(settings.images).read(grid, 0, 0, grid.height, grid.width)
    codes = plan.labels.read_on(grid, 0, 0, grid.height, grid.width)
    number = 0
    for name, shard in arrays.items():
        for place, (row, col) in enumerate(zip(shard["row"], shard["col"], strict=True)):
            window = (slice(row, row + 16), slice(col, col + 16))
            np.testing.assert_array_equal(shard["image"][place], image[:, *window])
            wanted = np.where(valid[window], np.searchsorted(CODES, codes[window]), IGNORE_INDEX)
            np.testing.assert_array_equal(shard["label"][place], wanted)
            assert tuple(shard["transform"][place]) == grid.window_transform(row, col)
            assert (wanted != IGNORE_INDEX).mean() >= 0.5
            number += 1
        assert attributes[name]["image_count"].tolist() == [attributes[name]["image_count"][0]] * 4
    assert number > 100
    assert sum(int(a["num_dropped"]) for a in attributes.values()) > 0  # the nodata corner


def test_statistics_are_those_of_the_train_chips(tmp_path):
    plan = landcover.plan(settings_for(tmp_path))
    attributes, arrays = write_all(plan, tmp_path)
    entries = landcover.manifest_entries(plan, attributes)
    train = [shard for name, shard in arrays.items() if name.startswith("train")]
    images = np.concatenate([shard["image"] for shard in train]).transpose(1, 0, 2, 3)
    labels = np.concatenate([shard["label"] for shard in train])
    # In these files the fill (0) never occurs as a value.
    pixels = images[:, images[0] != 0].astype(float)
    statistics = entries["statistics"]
    np.testing.assert_allclose(statistics["image"]["mean"], pixels.mean(axis=1))
    np.testing.assert_allclose(statistics["image"]["std"], pixels.std(axis=1))
    assert statistics["image"]["count"] == [pixels.shape[1]] * 4
    assert statistics["label"]["histogram"] == [int((labels == index).sum()) for index in range(4)]
    assert [entry["code"] for entry in entries["classes"]] == list(CODES)
    assert entries["bands"] == ["band_b2", "band_b3", "band_b4", "band_b5"]
    assert entries["grid"]["chip_px"] == 16
    assert set(entries["regions"]) == {"train", "test"}


def test_shards_are_balanced_contiguous_and_not_above_the_size_asked_for(tmp_path):
    plan = landcover.plan(settings_for(tmp_path, train_stride_px=4, min_valid=0.0))
    assert sum(task.split == "train" for task in plan.shards) > 2
    write_all(plan, tmp_path)
    for task in plan.shards:
        path = tmp_path / f"{task.name}.h5"
        assert path.stat().st_size < 1.1e6
        with h5py.File(path) as file:
            for name in file:
                assert file[name].chunks is None
                assert file[name].compression is None
                assert file[name].id.get_offset() is not None
    sizes = [len(task.items) for task in plan.shards if task.split == "train"]
    assert max(sizes) - min(sizes) <= 1


def test_on_the_image_grid_pixels_are_copied(tmp_path):
    settings = settings_for(tmp_path, grid="image", label_resampling="mode")
    plan = landcover.plan(settings)
    assert plan.grid.same_as(open_scenes(settings.images).grid)
    _, arrays = write_all(plan, tmp_path)
    shard = arrays["test-00000"]
    row, col = int(shard["row"][0]), int(shard["col"][0])
    expected, _ = plan.scenes.read(plan.scenes.grid, row, col, 16, 16)
    np.testing.assert_array_equal(shard["image"][0], expected)


def test_the_plan_follows_contents_and_settings_and_not_file_names(tmp_path):
    first = landcover.plan(settings_for(tmp_path / "a"))
    moved = landcover.plan(settings_for(tmp_path / "b c"))
    assert first.digest == moved.digest
    assert landcover.plan(settings_for(tmp_path / "a", seed=1)).digest != first.digest
    labels = labels_file(tmp_path / "other.tif", 150, 180, pixel_m=30.5)
    assert landcover.plan(settings_for(tmp_path / "a", labels=str(labels))).digest != first.digest


def test_a_shard_has_the_same_bytes_every_time(tmp_path):
    plan = landcover.plan(settings_for(tmp_path))
    for name in ("one.h5", "two.h5"):
        write(plan, plan.shards[0], tmp_path / name)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_a_shard_may_lose_all_its_chips(tmp_path):
    plan = landcover.plan(settings_for(tmp_path, min_valid=1.0))
    corner = dataclasses.replace(plan.shards[0], items=plan.shards[0].items[:1])
    write(plan, corner, tmp_path / "empty.h5")
    with h5py.File(tmp_path / "empty.h5") as file:
        assert file["image"].shape == (0, 4, 16, 16)
        assert int(file.attrs["num_dropped"]) == 1


def test_simplified_codes_work_with_a_classes_file(tmp_path):
    names = ["Water", "Developed", "Barren"]
    classes = [{"code": n, "name": name, "color": f"#00000{n}"} for n, name in enumerate(names, start=1)]
    path = tmp_path / "classes.yaml"
    path.write_text(yaml.safe_dump({"classes": classes}))
    codes = np.tile(np.array([1, 2, 3, 2], "uint8"), (1, 100, 25))
    image = write_raster(tmp_path / "i.tif", np.ones((1, 100, 100), "uint8"), image_affine(), UTM)
    labels = write_raster(tmp_path / "l.tif", codes, image_affine(), UTM)
    settings = Settings(images=(str(image),), labels=str(labels), classes=str(path), chip_px=8)
    assert [entry.name for entry in landcover.plan(settings).class_map.classes] == names
    with pytest.raises(UsageError, match=r"l\.tif: code 1 \(2500 pixels"):
        landcover.plan(dataclasses.replace(settings, classes=None))


def test_labels_beside_the_image_are_refused_with_both_extents(tmp_path):
    far = image_affine(corner=(500_000, 4_000_000))
    labels = write_raster(tmp_path / "far.tif", np.full((1, 50, 50), 11, "uint8"), far, UTM)
    for grid in ("labels", "image"):
        settings = settings_for(tmp_path, labels=str(labels), grid=grid)
        with pytest.raises(UsageError, match=r"far\.tif: the labels do not overlap the images.*501500.*305400"):
            landcover.plan(settings)


def test_a_chip_larger_than_the_scene_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"chip_px 512 is larger .*choose --chip-px"):
        landcover.plan(settings_for(tmp_path, chip_px=512))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chip_px": 0}, "chip_px is 0"),
        ({"stride_px": -1}, "stride_px is -1"),
        ({"buffer_px": -1}, "buffer_px is -1"),
        ({"block_px": 8}, "block_px is 8"),
        ({"min_valid": 1.5}, "min_valid is 1.5"),
        ({"test_fraction": 0.6, "val_fraction": 0.5}, "leave nothing to train"),
        ({"shard_mb": 0}, "shard_mb is 0"),
        ({"images": ()}, "no image is given"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        landcover.plan(settings_for(tmp_path, **changes))


def test_an_image_damaged_after_planning_is_named_with_its_window(tmp_path):
    settings = settings_for(tmp_path)
    plan = landcover.plan(settings)
    truncate(tmp_path / "band_b4.tif", 0.6)
    with pytest.raises(FailedError, match=r"band_b4\.tif: not readable in rows"):
        landcover.make_shard(plan, plan.shards[-1])
    with pytest.raises(UsageError, match=r"band_b4\.tif: not readable as a raster"):
        landcover.plan(settings)
