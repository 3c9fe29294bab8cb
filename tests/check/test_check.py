"""`hpcdl data check`: what is whole is called so, and each kind of damage or leak is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from hpcdl.check.__main__ import main
from hpcdl.check.picture import SPLIT_COLORS
from hpcdl.check.shards import check_shards
from hpcdl.prep.distance import smallest_distance
from hpcdl.raster.grid import parse_crs
from hpcdl.shards import manifest as manifest_module
from hpcdl.shards.manifest import build_manifest, file_digest, load_manifest, save_manifest
from hpcdl.shards.writer import write_shard_file
from tests.datasets import write_blobs

ROOT = Path(__file__).resolve().parents[2]
CHIP = 8
# Top-left corners: train in the west, val in the north east, test in the south east, three chips of buffer between.
PLACES = {
    "train": [(row, col) for row in range(0, 64, CHIP) for col in (0, 8)],
    "val": [(0, 40), (0, 48), (8, 40)],
    "test": [(48, 40), (48, 48), (56, 40)],
}
CLASSES = [
    {"index": 0, "code": 11, "name": "Water", "color": [70, 107, 159]},
    {"index": 1, "code": 42, "name": "Forest", "color": [28, 99, 48]},
    {"index": 2, "code": 52, "name": "Shrub", "color": [204, 186, 124]},
]


def write_map(
    folder: Path,
    places: dict[str, list[tuple[int, int]]] | None = None,
    labels: dict[str, tuple[int, ...]] | None = None,
    per_shard: int = 6,
    entries: dict[str, Any] | None = None,
) -> Path:
    """A map's data set written by hand: chips at `places`, with the classes of `labels` in each split.

    `entries` replaces manifest entries; one that is None is left out.
    """
    places = PLACES if places is None else places
    folder.mkdir(parents=True)
    splits: dict[str, Any] = {}
    for split, found in places.items():
        shards = []
        for number, start in enumerate(range(0, len(found), per_shard)):
            some = np.array(found[start : start + per_shard], np.int32)
            held = (labels or {}).get(split, (0, 1, 2))
            label = np.resize(np.array(held, np.uint8), (len(some), CHIP, CHIP))
            label[:, 0, 0] = 255
            fields = {
                "image": np.ones((len(some), 2, CHIP, CHIP), np.uint16), "label": label,
                "row": some[:, 0], "col": some[:, 1],
            }  # fmt: skip
            path = folder / f"{split}-{number:05d}.h5"
            write_shard_file(path, fields, {"plan": "by hand", "split": split})
            shards.append(
                {
                    "file": path.name,
                    "num_samples": len(some),
                    "num_bytes": path.stat().st_size,
                    "sha256": file_digest(path),
                }
            )
        splits[split] = {"num_samples": len(found), "num_dropped": 0, "shards": shards}
    names = list(places)
    distances = {
        f"{one}-{other}": {"px": apart, "map_units": 30 * apart}
        for number, one in enumerate(names)
        for other in names[number + 1 :]
        if (apart := smallest_distance(np.array(places[one]), np.array(places[other]), CHIP)) is not None
    }
    grid = {
        "crs": parse_crs("EPSG:32612").to_wkt(), "transform": [30, 0, 300_000, 0, -30, 4_150_000], "height": 64,
        "width": 56, "chip_px": CHIP,
    }  # fmt: skip
    extra = {"classes": CLASSES, "ignore_index": 255, "grid": grid, "distances": distances} | (entries or {})
    shapes = {
        "image": {"dtype": "uint16", "shape": [2, CHIP, CHIP]}, "label": {"dtype": "uint8", "shape": [CHIP, CHIP]},
        "row": {"dtype": "int32", "shape": []}, "col": {"dtype": "int32", "shape": []},
    }  # fmt: skip
    whole = build_manifest(
        "landcover", shapes, splits, {key: value for key, value in extra.items() if value is not None}
    )
    save_manifest(folder, whole)
    return folder


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    entries = json.loads(path.read_text())
    change(entries)
    path.write_text(json.dumps(entries))


@pytest.fixture
def check(tmp_path, monkeypatch, capfd):
    """Check a data set in this process: (exit code, stdout, stderr)."""

    def run(folder: Path, **changes) -> tuple[int, str, str]:
        request = {"data": str(folder), "digests": True, "picture": None, "json": False, **changes}
        path = tmp_path / "request.json"
        path.write_text(json.dumps(request))
        monkeypatch.setattr(sys, "argv", ["hpcdl.check", str(path)])
        code = main()
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def no_picture(monkeypatch):
    """For tests that look at findings alone."""
    monkeypatch.setattr("hpcdl.check.picture.draw_splits", lambda *_: None)


def levels(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.split()[:1] in (["ok"], ["warn"], ["fail"])]


def test_a_good_set_is_ok(tmp_path, check):
    code, output, errors = check(write_map(tmp_path / "map"))
    assert (code, errors) == (0, "")
    assert levels(output) == ["ok"] * 5
    assert "shards of" in output
    assert "digests are right" in output
    assert "all 3 classes occur in train, val, test" in output
    assert "train and val are 25 pixels apart, as the manifest certifies" in output
    assert "val and test are 33 pixels apart, as the manifest certifies" in output
    assert "train        16 samples in 3 shards" in output
    assert f"picture: {tmp_path / 'map' / 'splits.png'}" in output
    assert (tmp_path / "map" / "splits.png").stat().st_size > 5000


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped byte in the middle": lambda path: flip(path, path.stat().st_size // 2),
    "a flipped first byte": lambda path: flip(path, 0),
    "a flipped last byte": lambda path: flip(path, -1),
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "grown": lambda path: os.truncate(path, path.stat().st_size + 1),
    "missing": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shards_are_named_with_their_samples(tmp_path, check, damage):
    folder = write_map(tmp_path / "map")
    DAMAGES[damage](folder / "train-00001.h5")
    code, output, errors = check(folder)
    assert (code, errors) == (1, "")
    (line,) = [line for line in output.splitlines() if line.startswith("fail")]
    what = "the shard is missing" if damage in ("missing", "a folder") else "was changed after the manifest was written"
    assert f"{folder / 'train-00001.h5'}: the shard" in line
    assert what in line
    assert line.endswith("(samples 6–11 of train)")
    assert "run the same `hpcdl preprocess` again" in line
    assert not (folder / "splits.png").exists()


def test_all_damaged_shards_are_named_up_to_twenty(tmp_path, check):
    folder = write_map(tmp_path / "map", {"train": [(8 * n, 0) for n in range(25)]}, per_shard=1)
    for path in folder.glob("*.h5"):
        flip(path, -1)
    code, output, _ = check(folder)
    assert code == 1
    assert levels(output) == ["fail"] * 21
    assert "(samples 0–0 of train)" in output
    assert "and 5 more shards" in output


def test_without_digests_sizes_are_compared(tmp_path, check, no_picture):
    folder = write_map(tmp_path / "map")
    flip(folder / "test-00000.h5", -1)
    code, output, _ = check(folder, digests=False)
    assert code == 0
    assert "sizes and numbers of samples are right (digests not read)" in output
    os.truncate(folder / "val-00000.h5", 3000)
    code, output, _ = check(folder, digests=False)
    assert code == 1
    assert "val-00000.h5: the shard is missing or not of the size that the manifest says (samples 0–2 of val)" in output


def test_a_shard_with_another_number_of_samples_is_named(tmp_path, check):
    """The digest fits the file, and the file does not fit the manifest: a hand at work."""
    folder = write_map(tmp_path / "map")

    def change(entries: dict[str, Any]) -> None:
        entries["splits"]["val"]["shards"][0]["num_samples"] = 4
        entries["digest"] = manifest_module.data_digest(entries["fields"], entries["splits"])

    edit_manifest(folder, change)
    code, output, _ = check(folder)
    assert code == 1
    assert "val-00000.h5: holds 3 samples, the manifest says 4 (samples 0–3 of val)" in output


def test_a_disk_that_cannot_read_is_a_finding(tmp_path, monkeypatch):
    """An input/output error of one shard must not hide what there is to say of the others."""
    from hpcdl.check.findings import Report

    folder = write_map(tmp_path / "map")
    whole = file_digest

    def digest(path: Path) -> str:
        if path.name == "train-00002.h5":
            raise OSError(5, "Input/output error")
        return whole(path)

    monkeypatch.setattr("hpcdl.shards.manifest.file_digest", digest)
    report = Report()
    assert not check_shards(load_manifest(folder), True, lambda: None, report)
    (finding,) = report.findings
    assert finding.level == "fail"
    assert "train-00002.h5" in finding.what
    assert "Input/output error" in finding.what
    assert "(samples 12–15 of train)" in finding.what


def test_changed_distances_are_a_leak_in_the_making(tmp_path, check, no_picture):
    folder = write_map(tmp_path / "map")
    edit_manifest(folder, lambda entries: entries["distances"]["train-test"].update(px=40))
    code, output, _ = check(folder)
    assert code == 1
    assert "fail  train and test are 25 pixels apart, the manifest certifies 40; preprocess the data again" in output
    edit_manifest(folder, lambda entries: entries["distances"].pop("train-test"))
    code, output, _ = check(folder)
    assert code == 0
    assert "warn  train and test are 25 pixels apart; the manifest certifies no distance" in output


@pytest.mark.parametrize(
    ("place", "what"), [((12, 12), "share pixels"), ((56, 15), "share pixels"), ((0, 16), "are 1 pixels apart")]
)
def test_chips_that_overlap_fail_even_when_the_manifest_says_so(tmp_path, check, no_picture, place, what):
    folder = write_map(tmp_path / "map", {**PLACES, "test": [*PLACES["test"], place]})
    code, output, _ = check(folder)
    assert f"train and test {what}" in output
    assert code == (1 if what == "share pixels" else 0)


def test_overlaps_within_a_split_are_no_leak(tmp_path, check, no_picture):
    places = {**PLACES, "train": [(row, col) for row in range(0, 56, 3) for col in range(0, 9, 4)]}
    code, output, _ = check(write_map(tmp_path / "map", places))
    assert (code, set(levels(output))) == (0, {"ok"})


def test_a_split_without_a_class_is_a_warning(tmp_path, check, no_picture):
    folder = write_map(tmp_path / "map", labels={"val": (0, 255), "train": (0, 1)})
    code, output, _ = check(folder)
    assert code == 0
    assert "warn  train has nothing of: Shrub; no network learns them; choose other regions" in output
    assert "warn  val has nothing of: Forest, Shrub; no score on val tells of them" in output
    assert "all 3 classes occur" not in output
    table = [line.split() for line in output.splitlines() if line.split()[:1] == ["Shrub"]]
    assert [row[1::2] for row in table] == [["0", "0", "63"]]
    # 16 chips of 64 pixels, of which one each is ignored: half of the others are water.
    assert [line.split()[1:3] for line in output.splitlines() if line.split()[:1] == ["Water"]] == [["496", "49.21%"]]


def test_many_missing_classes_are_cut_short(tmp_path, check, no_picture):
    classes = [{"index": n, "code": n, "name": f"class {n}", "color": [n, n, n]} for n in range(20)]
    code, output, _ = check(write_map(tmp_path / "map", entries={"classes": classes}))
    assert code == 0
    assert (
        "val has nothing of: class 3, class 4, class 5, class 6, class 7, class 8, class 9, class 10 and 9 more"
        in output
    )


def test_kinds_without_a_grid(tmp_path, check):
    write_blobs(tmp_path / "blobs", {"train": 12, "val": 4})
    code, output, errors = check(tmp_path / "blobs")
    assert (code, errors) == (0, "")
    assert "all 3 classes occur in train, val" in output
    assert "apart" not in output
    assert "picture" not in output
    assert not list((tmp_path / "blobs").glob("*.png"))


def test_kinds_without_classes(tmp_path, check):
    folder = tmp_path / "lines"
    folder.mkdir()
    write_shard_file(folder / "train-00000.h5", {"tokens": np.zeros((5, 9), np.int32)}, {"plan": "x"})
    path = folder / "train-00000.h5"
    shard = {"file": path.name, "num_samples": 5, "num_bytes": path.stat().st_size, "sha256": file_digest(path)}
    fields = {"tokens": {"dtype": "int32", "shape": [9]}}
    save_manifest(folder, build_manifest("text", fields, {"train": {"num_samples": 5, "shards": [shard]}}, {}))
    code, output, _ = check(folder)
    assert code == 0
    assert levels(output) == ["ok"]
    code, output, _ = check(folder, json=True)
    assert json.loads(output)["num_samples"] == {"train": 5}


def test_a_map_without_distances_classes_or_colours(tmp_path, check):
    """Older data sets, and labels of another kind: less is told, nothing fails."""
    places = {"train": PLACES["train"], "test": PLACES["test"]}
    code, output, _ = check(write_map(tmp_path / "a", places, entries={"distances": None, "classes": None}))
    assert code == 0
    assert levels(output) == ["ok", "warn"]
    bare = [{"index": 0, "name": "a"}, {"index": 1, "name": "b"}, {"index": 2, "name": "c"}]
    code, output, _ = check(write_map(tmp_path / "b", places, entries={"classes": bare}))
    assert (code, levels(output)) == (0, ["ok", "ok", "ok"])
    assert (tmp_path / "b" / "splits.png").exists()


def test_json_is_one_document_and_nothing_else(tmp_path, check):
    folder = write_map(tmp_path / "ünï code")
    code, output, errors = check(folder, json=True)
    body = json.loads(output)
    assert (code, errors, body["ok"]) == (0, "", True)
    assert body["data"] == str(folder)
    assert body["num_samples"] == {"train": 16, "val": 3, "test": 3}
    assert body["distances_px"] == {"train-val": 25.0, "train-test": 25.0, "val-test": 33.0}
    assert body["classes"] == ["Water", "Forest", "Shrub"]
    assert sum(body["histograms"]["train"]) == 16 * 63
    assert (body["num_shards"], body["num_damaged"]) == (5, 0)
    assert body["picture"] == str(folder / "splits.png")
    assert {finding["level"] for finding in body["findings"]} == {"ok"}
    flip(folder / "test-00000.h5", -1)
    code, output, errors = check(folder, json=True)
    body = json.loads(output)
    assert (code, errors, body["ok"], body["num_damaged"]) == (1, "", False, 1)


def read_picture(path: Path) -> np.ndarray:
    """A PNG's pixels, H × W × C."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def pixels_near(picture: np.ndarray, color: Any) -> np.ndarray:
    wanted = np.array(to_rgb(color)) * 255
    return (np.abs(picture[..., :3].astype(int) - wanted) <= 2).all(axis=-1)


def test_the_picture_shows_each_split_where_its_chips_are(tmp_path, check):
    folder = write_map(tmp_path / "map")
    assert check(folder)[0] == 0
    picture = read_picture(folder / "splits.png")
    assert 800 <= picture.shape[1] <= 4000
    assert 600 <= picture.shape[0] <= 4000
    left = picture[:, : picture.shape[1] // 2]
    # The frame of the map, from the buffer's light grey and the splits' colours together.
    found = {split: pixels_near(left, color) for split, color in SPLIT_COLORS.items()}
    rows, cols = np.nonzero(found["train"])
    # Legends lie below the maps: only what is above the last large run of train's colour is the map.
    body = np.flatnonzero(found["train"].sum(axis=1) > 50)
    top, bottom = body.min(), body.max() + 1
    train = cols[(rows >= top) & (rows < bottom)]
    west, east = train.min(), train.max() + 1
    scale = (bottom - top) / 64  # screen pixels a pixel: train reaches from north to south
    assert abs((east - west) / scale - 16) < 1
    for split in ("val", "test"):
        inside = np.argwhere(found[split][top:bottom])
        assert abs(len(inside) / scale**2 - 3 * CHIP**2) < 0.15 * 3 * CHIP**2
        for row, col in PLACES[split]:
            middle = int(top + (row + CHIP / 2) * scale), int(west + (col + CHIP / 2) * scale)
            assert found[split][middle], (split, row, col)
    # No split's colour in the buffer, and the classes' colours on the right.
    assert not any(plane[int(top + 20 * scale), int(west + 30 * scale)] for plane in found.values())
    right = picture[:, picture.shape[1] // 2 :]
    for entry in CLASSES:
        assert pixels_near(right, [part / 255 for part in entry["color"]]).any()


@pytest.mark.parametrize("transform", [[30, 0, 300_000, 0, 30, 4_150_000], [30, 5, 300_000, 5, -30, 4_150_000]])
def test_pictures_of_south_up_and_turned_grids(tmp_path, check, transform):
    grid = {"crs": parse_crs("EPSG:32612").to_wkt(), "transform": transform, "height": 64, "width": 56, "chip_px": CHIP}
    folder = write_map(tmp_path / "map", entries={"grid": grid})
    assert check(folder)[0] == 0
    assert (folder / "splits.png").stat().st_size > 5000


def test_a_long_grid_is_drawn_smaller(tmp_path, check):
    """40 000 rows on a canvas of 1200: most chips of 8 pixels fall between the canvas's pixels."""
    places = {
        "train": [(row, 0) for row in range(0, 20_000, 800)],
        "test": [(row, 0) for row in range(21_000, 39_900, 801)],
    }
    grid = {
        "crs": parse_crs("EPSG:32612").to_wkt(), "transform": [30, 0, 300_000, 0, -30, 4_150_000], "height": 40_000,
        "width": 700, "chip_px": CHIP,
    }  # fmt: skip
    folder = write_map(tmp_path / "map", places, entries={"grid": grid})
    assert check(folder)[0] == 0
    image = read_picture(folder / "splits.png")
    assert max(image.shape) <= 6000


def test_the_picture_goes_where_it_is_asked_to(tmp_path, check):
    folder = write_map(tmp_path / "map")
    elsewhere = tmp_path / "it's here.png"
    code, output, _ = check(folder, picture=str(elsewhere))
    assert code == 0
    assert f"picture: {elsewhere}" in output
    assert read_picture(elsewhere).size
    assert not (folder / "splits.png").exists()


@pytest.mark.parametrize("name", ["splits", "map.xyz", "map.svg", "map.jpg"])
def test_the_picture_is_a_png_or_refused_whatever_its_name_ends_in(tmp_path, check, name):
    code, output, errors = check(write_map(tmp_path / "map"), picture=str(tmp_path / name))
    assert "Traceback" not in errors
    if code == 0:
        assert f"picture: {tmp_path / name}\n" in output
        assert read_picture(tmp_path / name).size
    else:
        assert errors.startswith("hpcdl: ")
        assert len(errors.splitlines()) == 1


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, check):
    folder = write_map(tmp_path / "map")
    (folder / "splits.png").mkdir()
    code, output, errors = check(folder)
    # That a folder takes no picture says nothing against the data set; that the place asked for takes none is a failure.
    assert (code, errors) == (0, "")
    assert f"warn  {folder / 'splits.png'}: the picture cannot be written: " in output
    assert "give --picture" in output
    for where in (tmp_path / "nowhere" / "a.png", folder / "manifest.json" / "a.png"):
        code, output, errors = check(folder, picture=str(where))
        assert (code, errors) == (1, "")
        assert f"fail  {where}: the picture cannot be written: " in output
        assert "digests are right" in output


@pytest.mark.slow
def test_a_read_only_data_set_is_checked_all_the_same(tmp_path, hpcdl):
    """A shared folder of somebody else's: the picture needs another place, and that is said."""
    folder = write_map(tmp_path / "map")
    if os.getuid() == 0:
        mounted = subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode == 0
        mounted = mounted and subprocess.run(["mount", "-o", "remount,ro,bind", folder]).returncode == 0
        if not mounted:
            pytest.skip("this machine does not let root mount a folder read-only")
    else:
        folder.chmod(0o555)
    try:
        done = hpcdl("data", "check", folder)
        elsewhere = hpcdl("data", "check", folder, "--picture", tmp_path / "a.png")
    finally:
        if os.getuid() == 0:
            subprocess.run(["umount", "-l", folder], check=True)
        else:
            folder.chmod(0o755)
    assert (done.code, done.err) == (0, "")
    assert "splits.png: the picture cannot be written: " in done.out
    assert (elsewhere.code, elsewhere.err) == (0, "")
    assert (tmp_path / "a.png").exists()


def test_what_is_no_data_set_is_refused(tmp_path, check, no_picture):
    (tmp_path / "empty").mkdir()
    for folder, what in ((tmp_path / "empty", "has no manifest.json"), (tmp_path / "nowhere", "does not exist")):
        code, output, errors = check(folder)
        assert (code, output) == (2, "")
        assert errors.startswith("hpcdl: ")
        assert what in errors
    folder = write_map(tmp_path / "map")
    edit_manifest(folder, lambda entries: entries["splits"]["train"]["shards"].pop())
    code, _, errors = check(folder)
    assert code == 2
    assert "was changed by hand" in errors


def test_a_shard_of_other_fields_is_named(tmp_path, check, no_picture):
    """Right sizes and digests, and labels of another shape than the manifest's: one line, no traceback."""
    folder = write_map(tmp_path / "map")

    def change(entries: dict[str, Any]) -> None:
        entries["fields"]["label"]["shape"] = [4, 4]
        entries["digest"] = manifest_module.data_digest(entries["fields"], entries["splits"])

    edit_manifest(folder, change)
    code, _, errors = check(folder)
    assert code == 1
    assert "field 'label' holds uint8 of shape (6, 8, 8)" in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.slow
def test_through_the_command_line(tmp_path, hpcdl):
    folder = write_map(tmp_path / "map")
    done = hpcdl("data", "check", folder, "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["ok"]
    assert (folder / "splits.png").exists()
    flip(folder / "train-00000.h5", 3000)
    done = hpcdl("data", "check", folder)
    assert done.code == 1
    assert "train-00000.h5" in done.out
    assert "(samples 0–5 of train)" in done.out
    done = hpcdl("data", "check", folder, "--no-digests", "--picture", tmp_path / "p.png")
    assert done.code == 0
    assert hpcdl("data", "check", tmp_path / "nowhere").code == 2
