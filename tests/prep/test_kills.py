"""What is left of a run that was killed, ran out of disk or met damage, and what a rerun makes of it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcdl.shards.manifest import load_manifest
from tests.generators import damage_tile, landcover_files

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LAUNCH_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMI_SIZE")
REQUEST_KEYS = ("workers", "overwrite", "keep_going", "quiet")
KEPT = re.compile(r"\(kept (\d+), wrote (\d+)\)")


class Run:
    """A run in processes of its own group; what it says comes in while it goes."""

    def __init__(self, folder: Path, out: Path, **changes) -> None:
        settings = {
            "images": [str(folder / "band_b*.tif")],
            "labels": str(folder / "nlcd.tif"),
            "chip_px": 16,
            "train_stride_px": 2,
            "test_region": "east:0.3",
            "val_fraction": 0,
            "shard_mb": 1,
        }
        settings.update({key: value for key, value in changes.items() if key not in REQUEST_KEYS})
        request = {"kind": "landcover", "settings": settings, "out": str(out), "workers": 2}
        request.update({key: value for key, value in changes.items() if key in REQUEST_KEYS})
        path = folder / f"request-{time.monotonic_ns()}.json"
        path.write_text(json.dumps(request))
        self.out = out
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hpcdl.prep", str(path)],
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if key not in LAUNCH_VARIABLES},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, seconds: float = 60) -> tuple[int, str]:
        """(exit code, stderr); a run that does not end in time is killed and fails the test."""
        try:
            _, errors = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self.process.returncode, errors

    def kill(self) -> None:
        """End the whole job at once, as a node's failure does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def workers(self) -> list[int]:
        """Process ids of the workers that are up."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                group = int((path / "stat").read_text().rpartition(")")[2].split()[2])
                if group == self.process.pid and b"spawn_main" in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
            except (OSError, IndexError):
                continue
        return found

    def shards(self) -> list[Path]:
        """Finished so far."""
        return sorted(self.out.glob("*.h5"))

    def await_shards(self, number: int) -> None:
        """Until so many are there, or the run has ended."""
        deadline = time.monotonic() + 60
        while len(self.shards()) < number and self.process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".h5"}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.h5")}


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def files_of(folder: Path) -> list[str]:
    return [shard.file for shards in load_manifest(folder).splits.values() for shard in shards]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path, float]:
    """Inputs, the data set of an undisturbed run, and the seconds that its work took."""
    folder = tmp_path_factory.mktemp("inputs")
    landcover_files(folder)
    run = Run(folder, folder / "whole")
    run.await_shards(1)
    started = time.monotonic()
    while not (folder / "whole" / "manifest.json").exists() and run.process.poll() is None:
        time.sleep(0.002)
    seconds = time.monotonic() - started
    code, errors = run.finish()
    assert code == 0, errors
    assert len(files_of(folder / "whole")) >= 10
    return folder, folder / "whole", seconds


def check_whole(folder: Path, whole: Path) -> None:
    assert contents(folder) == contents(whole)
    assert load_manifest(folder).digest == load_manifest(whole).digest
    assert hidden(folder) == []
    assert sorted(path.name for path in folder.iterdir()) == sorted([*files_of(whole), "manifest.json"])


@pytest.mark.timeout(120)
def test_the_whole_job_killed_again_and_again(made):
    """One folder, killed at moments of six runs: each rerun goes on from where the last one was."""
    folder, whole, seconds = made
    out = folder / "job"
    moments = random.Random(2011)
    kills = 0
    for _ in range(6):
        before = times(out) if out.is_dir() else {}
        run = Run(folder, out)
        try:
            # From before the first worker is up to the writing of the manifest.
            if moments.random() < 0.3:
                time.sleep(moments.uniform(0.3, 2.0))
            else:
                run.await_shards(len(before) + 1)
                time.sleep(moments.uniform(0, seconds / 4))
        finally:
            ended = run.process.poll() is not None
            run.kill()
        kills += not ended
        after = times(out) if out.is_dir() else {}
        # What an earlier run had finished is not touched again, and what has its name is whole.
        assert {name: after[name] for name in before} == before
        expected = contents(whole)
        assert all((out / name).read_bytes() == expected[name] for name in after)
        if (out / "manifest.json").exists():
            assert set(after) == set(expected)
            for path in [*sorted(out.glob("*.h5"))[::2], out / "manifest.json"]:
                path.unlink()
    assert kills >= 4
    before = times(out)
    code, errors = Run(folder, out).finish()
    assert code == 0, errors
    kept, wrote = map(int, KEPT.search(errors).groups())
    assert (kept, wrote) == (len(before), len(files_of(whole)) - len(before))
    assert {name: time_ns for name, time_ns in times(out).items() if name in before} == before
    check_whole(out, whole)


def check_outcome(run: Run, whole: Path, folder: Path, errors: str, code: int) -> None:
    """Finished all the same, or ended with one line, nothing partial left, and a rerun that writes what is missing."""
    assert "Traceback" not in errors
    assert hidden(run.out) == []
    if code:
        assert (code, len(errors.splitlines())) == (1, 1), errors
        assert errors.startswith("hpcdl: ")
        assert "run the same command again" in errors
        assert not (run.out / "manifest.json").exists()
        left = times(run.out)
        code, errors = Run(folder, run.out).finish()
        assert code == 0, errors
        assert KEPT.search(errors).groups() == (str(len(left)), str(len(files_of(whole)) - len(left)))
        assert {name: time_ns for name, time_ns in times(run.out).items() if name in left} == left
    check_whole(run.out, whole)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", range(4))
def test_workers_killed_at_random_moments(made, number):
    """Up to three kills a run, from when the first shard is being made."""
    folder, whole, seconds = made
    run = Run(folder, folder / f"worker-{number}")
    moments = random.Random(1000 + number)
    try:
        run.await_shards(moments.randrange(1, 4))
        for _ in range(3):
            time.sleep(moments.uniform(0, seconds / 3))
            workers = run.workers()
            if workers and run.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(moments.choice(workers), signal.SIGKILL)
        code, errors = run.finish()
    finally:
        run.kill()
    check_outcome(run, whole, folder, errors, code)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("moment", ["starting", "all at once", "the only one", "writing"])
def test_workers_killed_at_the_worst_moment(made, moment):
    folder, whole, _ = made
    run = Run(folder, folder / f"worst-{moment}", workers=1 if moment == "the only one" else 2)
    try:
        victims: list[int] = []
        while not victims and run.process.poll() is None:
            if moment == "starting":
                victims = run.workers()[:1]
            elif moment == "writing":
                victims = (
                    [int(name.split(".")[-2]) for name in hidden(run.out) if ".h5." in name and name.endswith(".tmp")]
                    if run.out.is_dir()
                    else []
                )
            elif run.shards():
                victims = run.workers()
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        code, errors = run.finish()
    finally:
        run.kill()
    assert victims
    check_outcome(run, whole, folder, errors, code)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 12 MB."""
    if os.getuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let root mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.timeout(120)
def test_a_full_disk(made, small_disk):
    folder, whole, _ = made
    out = small_disk / "out"
    needed = sum(map(len, contents(whole).values()))
    assert needed < 11e6

    # Too little from the start: nothing is begun.
    filler = small_disk / "filler"
    filler.write_bytes(bytes(12 * 2**20 - needed // 2))
    code, errors = Run(folder, out).finish()
    assert code == 1
    assert re.search(r"the shards need about .* are free; choose another one", errors)
    assert len(errors.splitlines()) == 1
    assert contents(out) == {}
    assert hidden(out) == []

    # Filled by a neighbour while the run goes.
    filler.unlink()
    run = Run(folder, out)
    stop = threading.Event()

    def fill() -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            run.await_shards(2)
            while not stop.is_set() and file.write(bytes(2**16)):
                pass

    neighbour = threading.Thread(target=fill)
    neighbour.start()
    try:
        code, errors = run.finish()
    finally:
        stop.set()
        run.kill()
        neighbour.join()
    assert code == 1, errors
    assert len(errors.splitlines()) == 1, errors
    # Nearly always a shard; when all of them just fitted, the manifest.
    shard = r"(train|test)-\d{5}\.h5 \(.* chips in rows .*\)"
    assert re.search(rf"({shard}|{re.escape(str(out))}\S*): cannot be written: .*No space left", errors)
    assert hidden(out) == []
    assert not (out / "manifest.json").exists()
    expected = contents(whole)
    left = contents(out)
    assert left
    assert all(data == expected[name] for name, data in left.items())

    filler.unlink()
    code, errors = Run(folder, out).finish()
    assert code == 0, errors
    assert KEPT.search(errors).groups() == (str(len(left)), str(len(expected) - len(left)))
    check_whole(out, whole)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Path:
    """Inputs of which one band cannot be read in the middle of the scene."""
    folder = tmp_path_factory.mktemp("damaged")
    landcover_files(folder)
    damage_tile(folder / "band_b3.tif", 1, 1)
    return folder


@pytest.mark.timeout(120)
@pytest.mark.parametrize("keep_going", [False, True])
def test_an_unreadable_block_in_the_middle(damaged, keep_going):
    """Named with its shard and window; with keep_going all shards that do not need the block are finished first."""
    out = damaged / f"out-{keep_going}"
    code, errors = Run(damaged, out, keep_going=keep_going, grid="image", test_region="east:0.25").finish()
    assert code == 1, errors
    assert "Traceback" not in errors
    line = r"train-\d{5}\.h5 \(train chips in rows \d+–\d+, columns \d+–\d+ of the target grid\): "
    line += r"\S*band_b3\.tif: not readable in rows \d+–\d+, columns \d+–\d+ of the target grid"
    assert re.search(line, errors), errors
    assert not (out / "manifest.json").exists()
    assert hidden(out) == []
    if keep_going:
        failed = set(re.findall(r"((?:train|test)-\d{5}\.h5) \(", errors))
        assert re.match(rf"hpcdl: {len(failed)} shards? could not be made; all others are finished", errors)
        assert len(errors.splitlines()) == 1 + len(failed)
        finished = set(contents(out))
        # Shards are strips of rows: the first and the last ones lie above and below the block, of 64 rows of 150.
        assert len(failed) >= 2
        assert "train-00000.h5" in finished
        assert "test-00000.h5" in finished
        assert not failed & finished
        numbers = sorted(int(name[6:11]) for name in failed)
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
    else:
        assert len(errors.splitlines()) == 1


@pytest.mark.timeout(120)
def test_the_second_of_two_runs_to_one_folder_is_refused(made):
    folder, whole, _ = made
    out = folder / "contended"
    first = Run(folder, out)
    try:
        first.await_shards(1)
        os.killpg(first.process.pid, signal.SIGSTOP)  # so that it is still there when the second one asks
        assert first.process.poll() is None
        code, errors = Run(folder, out).finish()
        os.killpg(first.process.pid, signal.SIGCONT)
        assert code == 2
        assert re.search(
            rf"contended: another run is writing here \(host \S+, process {first.process.pid}, job none\); wait", errors
        )
        assert len(errors.splitlines()) == 1
        code, errors = first.finish()
    finally:
        first.kill()
    assert code == 0, errors
    check_whole(out, whole)


@pytest.mark.timeout(120)
def test_another_data_set_is_refused_without_overwrite(made, tmp_path):
    folder, whole, _ = made
    out = tmp_path / "out"
    out.mkdir()
    for path in whole.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    before = times(out)
    code, errors = Run(folder, out, chip_px=20).finish()
    assert code == 2
    assert re.search(r"out: holds a data set made with other settings or sources; .*--overwrite", errors)
    assert len(errors.splitlines()) == 1
    assert times(out) == before
    check_whole(out, whole)
    code, errors = Run(folder, out, chip_px=20, overwrite=True).finish()
    assert code == 0, errors
    assert KEPT.search(errors).group(1) == "0"
    assert load_manifest(out).entries["settings"]["chip_px"] == 20
    assert load_manifest(out).digest != load_manifest(whole).digest
    assert set(files_of(out)) == set(contents(out))
