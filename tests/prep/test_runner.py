from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

from hpcdl.catalog import input_kinds
from hpcdl.errors import UsageError
from hpcdl.prep.cluster import Launch, find_launch
from hpcdl.prep.kinds import build_settings, load_kind
from hpcdl.prep.landcover import Settings
from hpcdl.shards.manifest import load_manifest, verify_shard
from tests.generators import damage_tile, landcover_files

ROOT = Path(__file__).resolve().parents[2]
LAUNCH_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMI_SIZE")


def start(folder: Path, out: Path, environment=None, **changes) -> subprocess.Popen:
    """A run in a process of its own, on the images of `folder`, into `out`."""
    settings = {
        "images": [str(folder / "band_b*.tif")],
        "labels": str(folder / "nlcd.tif"),
        "chip_px": 16,
        "train_stride_px": 4,
        "test_region": "east:0.3",
        "val_fraction": 0,
        "shard_mb": 1,
    }
    keys = ("workers", "overwrite", "quiet")
    settings.update({key: value for key, value in changes.items() if key not in keys})
    request = {"kind": "landcover", "settings": settings, "out": str(out), "command": ["hpcdl", "preprocess"]}
    request.update({key: value for key, value in changes.items() if key in keys})
    path = folder / f"request-{time.monotonic_ns()}.json"
    path.write_text(json.dumps(request))
    base = {key: value for key, value in os.environ.items() if key not in LAUNCH_VARIABLES}
    return subprocess.Popen(
        [sys.executable, "-m", "hpcdl.prep", str(path)],
        cwd=ROOT,
        env={**base, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.h5")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Inputs in a folder with an awkward name, and a data set made of them by one worker."""
    folder = tmp_path_factory.mktemp("it's $(odd) ü")
    landcover_files(folder)
    code, output, errors = finish(start(folder, folder / "one", workers=1))
    assert code == 0, errors
    assert output == ""
    return folder, errors


def test_a_run_makes_a_data_set_that_verifies_and_sums_up(made):
    folder, errors = made
    manifest = load_manifest(folder / "one")
    assert sum(map(len, manifest.splits.values())) >= 3
    for shards in manifest.splits.values():
        for shard in shards:
            verify_shard(manifest, shard)
    assert "(kept 0, wrote" in errors
    assert "Evergreen Forest" in errors
    entries = manifest.entries
    assert entries["splits"]["train"]["num_buffer"] > 0
    assert entries["settings"]["chip_px"] == 16
    assert entries["command"] == ["hpcdl", "preprocess"]
    assert {source["role"] for source in entries["sources"]} == {"image", "label", "legend"}
    names = sorted(path.name for path in (folder / "one").iterdir())
    files = [shard.file for shards in manifest.splits.values() for shard in shards]
    assert names == sorted([*files, "manifest.json"])


def test_two_workers_write_the_same_and_a_killed_run_goes_on(made):
    folder, _ = made
    out = folder / "two"
    process = start(folder, out, workers=2)
    try:
        deadline = time.monotonic() + 60
        while not list(out.glob("*.h5")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.h5")}
    (out / ".train-00000.h5.99.tmp").write_bytes(b"half a shard")
    code, _, errors = finish(start(folder, out, workers=2))
    assert code == 0, errors
    assert f"(kept {len(kept)}," in errors
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert bytes_of(out) == bytes_of(folder / "one")
    assert load_manifest(out).digest == load_manifest(folder / "one").digest
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def flip(path: Path, place: int) -> None:
    """Turn the bits of one byte."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.slow
def test_damaged_shards_are_written_anew_and_other_settings_are_refused(made):
    folder, _ = made
    out = folder / "mended"
    out.mkdir()
    for name, data in bytes_of(folder / "one").items():
        (out / name).write_bytes(data)
    (out / "manifest.json").write_bytes((folder / "one" / "manifest.json").read_bytes())
    with h5py.File(out / "train-00000.h5", "r+") as file:
        file["label"][0, 0, 0] ^= 1
        place = file["image"].id.get_offset()
    flip(out / "train-00001.h5", place + 1000)
    flip(out / "test-00000.h5", -1)
    code, _, errors = finish(start(folder, out, chip_px=32))
    assert code == 2
    assert "other settings or sources" in errors
    code, _, errors = finish(start(folder, out, quiet=True, workers=1))
    assert (code, errors) == (0, "")
    assert bytes_of(out) == bytes_of(folder / "one")


@pytest.mark.slow
def test_a_failing_shard_is_named_and_finished_ones_stay(tmp_path):
    # The east is the test region, whose shard comes last: the train shards are finished before the damage shows.
    landcover_files(tmp_path)
    damage_tile(tmp_path / "band_b3.tif", 1, 2)
    out = tmp_path / "out"
    code, _, errors = finish(start(tmp_path, out, workers=1, grid="image"))
    assert code == 1
    assert len(errors.splitlines()) == 1
    assert re.search(r"test-00000\.h5 \(test chips in rows .*band_b3\.tif: not readable in rows", errors)
    assert list(out.glob("train-*.h5"))
    assert not (out / "manifest.json").exists()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_a_damaged_shard_without_a_manifest_is_written_anew(made):
    folder, _ = made
    out = folder / "unlisted"
    out.mkdir()
    whole = bytes_of(folder / "one")
    for name, data in whole.items():
        (out / name).write_bytes(data)
    flip(out / "train-00000.h5", -1)
    code, _, errors = finish(start(folder, out, workers=1))
    assert code == 0, errors
    assert f"(kept {len(whole) - 1}, wrote 1)" in errors
    assert bytes_of(out) == whole


@pytest.mark.slow
def test_shards_of_a_run_that_failed_do_not_block_the_corrected_one(made):
    folder, _ = made
    out = folder / "corrected"
    code, _, errors = finish(start(folder, out, workers=1, min_valid=1, test_region="north:0.1"))
    assert code == 1
    assert "the test split is empty" in errors
    assert list(out.glob("*.h5"))
    code, _, errors = finish(start(folder, out, workers=1))
    assert code == 0, errors
    assert "shards of an unfinished run" in errors
    assert bytes_of(out) == bytes_of(folder / "one")


def children(pid: int) -> set[int]:
    """Processes that a process has started, and those that they have."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    own = {int(word) for task in tasks for word in task.read_text().split()}
    return own.union(*(children(child) for child in own))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.parametrize("signals", [("one",), ("one", "one"), ("group",)])
def test_sigterm_ends_the_workers_and_releases_the_folder(made, signals):
    """Twice, as when the parent passes on what the whole step got anyway; to the group, as Slurm does."""
    folder, _ = made
    out = folder / f"ended-{'-'.join(signals)}"
    process = start(folder, out, workers=2)
    try:
        deadline = time.monotonic() + 60
        while not (out / ".lock").exists() or len(children(process.pid)) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        workers = children(process.pid)
        assert len(workers) >= 2
        started = time.monotonic()
        for target in signals:
            (os.kill if target == "one" else os.killpg)(process.pid, signal.SIGTERM)
            time.sleep(0.05)
        code, _, errors = finish(process)
        while any(map(alive, workers)) and time.monotonic() < started + 10:
            time.sleep(0.05)
        assert time.monotonic() - started < 10
        assert code == 128 + signal.SIGTERM
        assert "Traceback" not in errors
        assert not [path for path in out.iterdir() if path.name.startswith(".")]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    code, _, errors = finish(start(folder, out, workers=2))
    assert code == 0, errors
    assert bytes_of(out) == bytes_of(folder / "one")


@pytest.mark.slow
def test_ranks_of_a_launcher_share_the_work(made):
    folder, _ = made
    out = folder / "ranks"
    names = {"OMPI_COMM_WORLD_SIZE": "3", "PMIX_NAMESPACE": "test"}
    ranks = [start(folder, out, {**names, "OMPI_COMM_WORLD_RANK": str(rank)}) for rank in range(3)]
    ends = [finish(rank) for rank in ranks]
    assert [code for code, _, _ in ends] == [0, 0, 0], ends
    assert "shards of" in ends[1][2]
    assert [ends[0][2], ends[2][2]] == ["", ""]
    assert bytes_of(out) == bytes_of(folder / "one")
    assert not (out / ".dask").exists()


def test_launchers_are_told_apart():
    assert find_launch({}) is None
    assert find_launch({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}) is None  # a batch script
    srun = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
    assert find_launch(srun) == Launch(2, 4, "7-0")
    assert find_launch({**srun, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}) == Launch(2, 4, "7-0")
    mpirun = {**srun, "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5"}
    assert find_launch(mpirun) == Launch(5, 8, "7-0")
    assert find_launch({**srun, "SLURM_STEP_NUM_TASKS": "1"}) is None


def test_kinds_are_the_files_with_settings():
    assert "landcover" in input_kinds()
    assert not {"plan", "runner", "splits"} & set(input_kinds())
    with pytest.raises(UsageError, match=r"unknown kind of input .landcove.; known: .*landcover"):
        load_kind("landcove")


def test_settings_come_from_plain_values_and_are_checked():
    kind = load_kind("landcover")
    settings = build_settings(kind, "landcover", {"images": ["a,b.tif", "c.tif"], "labels": "l.tif", "chip_px": 64})
    assert settings == Settings(images=("a,b.tif", "c.tif"), labels="l.tif", chip_px=64)
    with pytest.raises(UsageError, match="unknown setting 'chip'"):
        build_settings(kind, "landcover", {"images": ["a"], "labels": "l", "chip": 64})
    with pytest.raises(UsageError, match="labels"):
        build_settings(kind, "landcover", {"images": ["a"]})
    with pytest.raises(UsageError, match="grid"):
        build_settings(kind, "landcover", {"images": ["a"], "labels": "l", "grid": "both"})


def test_faulty_requests_are_one_line_and_exit_2(tmp_path):
    path = tmp_path / "request.json"
    path.write_text("{}")
    done = subprocess.run([sys.executable, "-m", "hpcdl.prep", path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("hpcdl: ")
    assert len(done.stderr.splitlines()) == 1
