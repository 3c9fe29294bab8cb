"""Checkpoints on disk: whole or not there, never silently wrong, and never the last one lost."""

from __future__ import annotations

import errno
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcdl.errors import FailedError
from hpcdl.shards.manifest import Manifest
from hpcdl.train import checkpoint
from hpcdl.train.checkpoint import BEST, LAST, DamagedError, Retention
from hpcdl.train.guards import AgreedError
from tests.datasets import write_blobs
from tests.train.trainings import digest, lines, make_trainer, newest, start

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_blobs(tmp_path_factory.mktemp("checkpoint") / "data", {"train": 22, "val": 6})


def write(folder: Path, *steps: int, numel: int = 1000) -> list[Path]:
    """Checkpoints of a tensor that tells the step, for two ranks."""
    for step in steps:
        state = {"networks": {"one": {"weight": torch.full((numel,), float(step))}}, "num_ranks": 2}
        checkpoint.write(folder, step, state, [checkpoint.to_bytes({"rank": rank}) for rank in range(2)], lambda: None)
    return [folder / checkpoint.name_of(step) for step in steps]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def good(folder: Path, set_aside: bool = False) -> tuple[str | None, list[str]]:
    """Name of the newest good one, and what was told."""
    told: list[str] = []
    found = checkpoint.newest_good(folder, told.append, set_aside)
    return found and found.name, told


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    (found,) = write(tmp_path, 12)
    assert names(tmp_path) == ["LAST", "step-00000012"]
    assert names(found) == ["digests.json", "ranks.pt", "state.pt"]
    assert checkpoint.load(found)["networks"]["one"]["weight"].tolist() == [12.0] * 1000
    assert [checkpoint.load_rank(found, rank) for rank in (0, 1)] == [{"rank": 0}, {"rank": 1}]
    assert checkpoint.pointed(tmp_path, LAST) == found
    assert checkpoint.pointed(tmp_path, BEST) is None
    checkpoint.verify(found)


@pytest.mark.parametrize("place", [0, 0.3, 0.5, 0.9, -1])
@pytest.mark.parametrize("name", ["state.pt", "ranks.pt"])
def test_one_byte_that_flipped_is_found(tmp_path: Path, name: str, place: float) -> None:
    old, new = write(tmp_path, 1, 2)
    flip(new / name, int(place * (new / name).stat().st_size) if place > 0 else int(place))
    with pytest.raises(DamagedError, match=rf"step-00000002: {name} is not what was written"):
        checkpoint.verify(new)
    found, told = good(tmp_path)
    assert found == old.name
    assert len(told) == 1
    assert told[0].startswith("damaged checkpoint, falling back to an older one: ")
    assert new.is_dir()


def test_any_byte_of_the_digests_that_flipped_is_found_or_does_no_harm(tmp_path: Path) -> None:
    old, new = write(tmp_path, 1, 2)
    before = (new / "digests.json").read_bytes()
    refused = 0
    for place in range(len(before)):
        flip(new / "digests.json", place)
        found, _ = good(tmp_path)
        assert found in (old.name, new.name)
        refused += found == old.name
        (new / "digests.json").write_bytes(before)
    assert refused > 0.8 * len(before)  # the rest is white space


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: os.truncate(path / "state.pt", 100), "state.pt has 100 bytes, "),
        (lambda path: os.truncate(path / "ranks.pt", 0), "ranks.pt has 0 bytes, "),
        (lambda path: os.truncate(path / "digests.json", 20), "digests.json is not readable: "),
        (lambda path: os.truncate(path / "digests.json", 0), "digests.json is not readable: "),
        (lambda path: (path / "digests.json").write_text("[]"), "digests.json is not readable: "),
        (lambda path: (path / "digests.json").write_text('{"state.pt": {}}'), "digests.json is not readable: "),
        (lambda path: (path / "digests.json").write_bytes(b"\xff\xfe"), "digests.json is not readable: "),
        (lambda path: (path / "state.pt").unlink(), "state.pt is missing"),
        (lambda path: (path / "ranks.pt").unlink(), "ranks.pt is missing"),
        (lambda path: (path / "digests.json").unlink(), "digests.json is missing"),
        (lambda path: [file.unlink() for file in path.iterdir()], "digests.json is missing"),
    ],
)
def test_what_is_cut_short_or_missing_is_found(tmp_path: Path, damage: Any, reason: str) -> None:
    _, old, new = write(tmp_path, 1, 2, 3)
    damage(new)
    found, told = good(tmp_path, set_aside=True)
    assert found == old.name
    assert len(told) == 1
    assert reason in told[0]
    assert "\n" not in told[0]
    assert names(tmp_path) == ["LAST", "damaged-step-00000003", "step-00000001", "step-00000002"]


@pytest.mark.parametrize("pointer", [None, "", "step-00000009\n", "../elsewhere\n", "damaged-step-00000001\n"])
def test_the_newest_is_found_whatever_LAST_says(tmp_path: Path, pointer: str | None) -> None:
    write(tmp_path, 1, 2)
    (tmp_path / LAST).unlink()
    if pointer is not None:
        (tmp_path / LAST).write_text(pointer)
    assert checkpoint.pointed(tmp_path, LAST) is None
    assert good(tmp_path) == ("step-00000002", [])


def test_the_folder_that_LAST_names_may_be_lost(tmp_path: Path) -> None:
    _, new = write(tmp_path, 1, 2)
    shutil.rmtree(new)
    assert checkpoint.pointed(tmp_path, LAST) is None
    assert good(tmp_path) == ("step-00000001", [])


def test_foreign_folders_are_no_checkpoints(tmp_path: Path) -> None:
    write(tmp_path, 5)
    for name in ("step-", "step-abc", "step-7", "step-00000009.old", "step-٠٠٠٠٠٠٠٩", "other", ".step-00000006.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000008").touch()
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-00000005"]
    assert good(tmp_path, set_aside=True) == ("step-00000005", [])
    checkpoint.prune(tmp_path, Retention(1, 0))
    assert (tmp_path / "step-00000009.old").is_dir()


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    write(tmp_path, 99_999_999, 100_000_000)
    assert good(tmp_path)[0] == "step-100000000"


def test_none_is_good(tmp_path: Path) -> None:
    assert good(tmp_path) == (None, [])
    assert good(tmp_path / "missing") == (None, [])
    for path in write(tmp_path, 1, 2):
        flip(path / "state.pt", 500)
    found, told = good(tmp_path, set_aside=True)
    assert found is None
    assert len(told) == 2
    assert names(tmp_path) == ["LAST", "damaged-step-00000001", "damaged-step-00000002"]
    # The same steps again, and damaged again: the newer remains take the older ones' place.
    for path in write(tmp_path, 1, 2):
        (path / "digests.json").unlink()
    assert good(tmp_path, set_aside=True)[0] is None
    assert names(tmp_path) == ["LAST", "damaged-step-00000001", "damaged-step-00000002"]


def test_retention(tmp_path: Path) -> None:
    write(tmp_path, 2, 4, 6, 8, 10, 12, 14)
    checkpoint.point(tmp_path, BEST, 4)
    checkpoint.prune(tmp_path, Retention(last=2, every=5))
    assert names(tmp_path) == ["BEST", "LAST", "step-00000004", "step-00000010", "step-00000012", "step-00000014"]
    checkpoint.point(tmp_path, BEST, 12)
    checkpoint.prune(tmp_path, Retention(last=1, every=0))
    assert names(tmp_path) == ["BEST", "LAST", "step-00000012", "step-00000014"]


def test_a_deletion_that_was_cut_short_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1, 2, 3)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *arguments, **options: None)  # killed before
        checkpoint.prune(tmp_path, Retention(1, 0))
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-00000003"]
    checkpoint.clear_unfinished(tmp_path)
    assert names(tmp_path) == ["LAST", "step-00000003"]


def test_what_killed_writers_left_is_cleared(tmp_path: Path) -> None:
    write(tmp_path, 1)
    for name in (".step-00000002.tmp", ".step-00000001.old.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.pt").write_text("half")
    (tmp_path / ".LAST.tmp").write_text("st")
    checkpoint.clear_unfinished(tmp_path)
    assert names(tmp_path) == ["LAST", "step-00000001"]


def test_the_same_step_again_takes_the_place_of_the_former(tmp_path: Path) -> None:
    (found,) = write(tmp_path, 1)
    write(tmp_path, 1, numel=7)
    checkpoint.verify(found)
    assert len(checkpoint.load(found)["networks"]["one"]["weight"]) == 7
    assert names(tmp_path) == ["LAST", "step-00000001"]


def test_a_writer_that_may_not_leaves_nothing(tmp_path: Path) -> None:
    def refuse() -> None:
        raise FailedError("taken over")

    write(tmp_path, 1)
    with pytest.raises(FailedError, match="taken over"):
        checkpoint.write(tmp_path, 2, {"a": torch.zeros(3)}, [checkpoint.to_bytes({})], refuse)
    assert names(tmp_path) == ["LAST", "step-00000001"]
    assert (tmp_path / LAST).read_text() == "step-00000001\n"


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_checkpoint_runs_no_code(tmp_path: Path, how: str) -> None:
    (found,) = write(tmp_path, 1)
    evil = Evil(tmp_path / "ran")
    for name in ("state.pt", "ranks.pt"):
        if how == "torch":
            torch.save({"networks": evil}, found / name)
        else:
            (found / name).write_bytes(pickle.dumps(evil))
    for read in (checkpoint.load, lambda path: checkpoint.load_rank(path, 0)):
        with pytest.raises(DamagedError, match=r"not readable as a checkpoint") as caught:
            read(found)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(evil))  # noqa: S301 - it would have
    assert (tmp_path / "ran").is_dir()


def test_a_run_whose_checkpoints_are_all_damaged_starts_anew(
    tmp_path: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    first = start(tmp_path / "run", manifest, max_steps=4, checkpoint__steps=2)
    first.train()
    for path in checkpoint.checkpoints(first.run.checkpoints):
        flip(path / "state.pt", 1000)
    capsys.readouterr()
    second = make_trainer(tmp_path / "run", manifest, max_steps=4)
    assert second.resume() == 0
    assert capsys.readouterr().out.count("damaged checkpoint, falling back") == 2
    second.train()
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4]
    assert digest(second) == digest(first)
    assert newest(tmp_path / "run").name == "step-00000004"


def test_a_damaged_newest_costs_what_was_trained_since_the_one_before(
    tmp_path: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    first = start(tmp_path / "run", manifest, max_steps=7, checkpoint__steps=3, noise=True)
    first.train()
    flip(newest(tmp_path / "run") / "ranks.pt", 1000)
    second = make_trainer(tmp_path / "run", manifest, max_steps=7, checkpoint__steps=3, noise=True)
    assert second.resume() == 6
    assert "resumed from step-00000006" in capsys.readouterr().out
    second.train()
    assert digest(second) == digest(first)


def test_another_job_that_took_the_run_over_stops_the_writing(tmp_path: Path, manifest: Manifest) -> None:
    def permit() -> None:
        if newest_steps() >= [4]:
            raise FailedError("another job has taken this run over")

    def newest_steps() -> list[int]:
        return [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path / "run/checkpoints")][-1:]

    trainer = start(tmp_path / "run", manifest, permit=permit, max_steps=20, checkpoint__steps=2)
    with pytest.raises(FailedError, match="taken this run over"):
        trainer.train()
    assert names(tmp_path / "run/checkpoints") == ["LAST", "step-00000002", "step-00000004"]
    assert trainer.state.at.step < 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root to mount a small tmpfs")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Leave so many bytes of room."""
    path = folder / "filler"
    path.unlink(missing_ok=True)
    path.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - leave)))
    return path


@pytest.mark.parametrize("leave", [0, 4096, 8192, 12288, 16384, 100_000, 200_000])
def test_a_full_disk_leaves_the_former_checkpoint(small_disk: Path, leave: int) -> None:
    """A checkpoint of 400 kB; from room for nothing to room for half of it."""
    folder = small_disk / "checkpoints"
    (former,) = write(folder, 1, numel=100_000)
    fill(small_disk, leave)
    with pytest.raises(OSError, match="No space left") as caught:
        write(folder, 2, numel=100_000)
    assert caught.value.errno == errno.ENOSPC
    assert names(folder) == ["LAST", former.name]
    assert (folder / LAST).read_text() == f"{former.name}\n"
    checkpoint.verify(former)
    assert good(folder) == (former.name, [])


def test_every_page_that_may_be_missing(small_disk: Path) -> None:
    """A small checkpoint, with one page more of room at each attempt until it fits: also LAST may be what does not."""
    folder = small_disk / "checkpoints"
    write(folder, 1)
    for pages in range(40):
        filler = fill(small_disk, 4096 * pages)
        try:
            write(folder, 2)
        except OSError:
            assert names(folder) == ["LAST", "step-00000001"]
            assert (folder / LAST).read_text() == "step-00000001\n"
        else:
            break
        filler.unlink()
    assert pages > 3
    assert good(folder) == ("step-00000002", [])
    assert (folder / LAST).read_text() == "step-00000002\n"
    assert names(folder) == ["LAST", "step-00000001", "step-00000002"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_ends_the_training(
    tmp_path: Path, small_disk: Path, manifest: Manifest, asynchronous: bool
) -> None:
    values = {"checkpoint.steps": 2, "checkpoint.asynchronous": asynchronous, "width": 256}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").symlink_to(small_disk)
    first = start(tmp_path / "run", manifest, stop_at=2, max_steps=20, **values)
    first.train()
    filler = fill(small_disk, 20_000)
    second = start(tmp_path / "run", manifest, max_steps=20, **values)
    with pytest.raises(AgreedError) as caught:
        second.train()
    told = str(caught.value)
    assert told.startswith(
        f"checkpoint of step 4 could not be written to {tmp_path / 'run/checkpoints'}: No space left"
    )
    assert "(0 MB free)" in told
    assert "hpcdl resume run" in told
    assert names(small_disk) == ["LAST", "filler", "step-00000002"]
    assert digest_of(newest(tmp_path / "run")) == digest(first)
    filler.unlink()
    third = start(tmp_path / "run", manifest, max_steps=6, **values)
    assert third.train()
    assert newest(tmp_path / "run").name == "step-00000006"


def digest_of(found: Path) -> str:
    """What `digest` says of the training that wrote it."""

    class Written:
        class state:
            @staticmethod
            def shared() -> dict[str, Any]:
                return checkpoint.load(found)

    return digest(Written)  # type: ignore[arg-type]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_may_be_only_warned_of(
    tmp_path: Path, small_disk: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str], asynchronous: bool
) -> None:
    values = {"checkpoint.steps": 2, "checkpoint.asynchronous": asynchronous, "checkpoint.on_error": "go-on"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").symlink_to(small_disk)
    trainer = start(tmp_path / "run", manifest, max_steps=20, width=256, **values)
    step = trainer.stepper.step
    steps_left: dict[int, list[str]] = {}

    def watched(*arguments: Any) -> Any:
        trainer.saver.wait()
        done = trainer.state.at.step
        steps_left[done] = names(small_disk)
        if done == 5:
            fill(small_disk, 20_000)
        if done == 13:
            (small_disk / "filler").unlink()
        return step(*arguments)

    trainer.stepper.step = watched  # type: ignore[method-assign]
    assert trainer.train()
    assert steps_left[5] == ["LAST", "step-00000002", "step-00000004"]
    assert steps_left[12] == ["LAST", "filler", "step-00000002", "step-00000004"]
    assert steps_left[15] == ["LAST", "step-00000004", "step-00000014"]
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert [line.split(" could not")[0] for line in told] == [
        f"warning: checkpoint of step {step}" for step in (6, 8, 10, 12)
    ]
    assert names(small_disk) == ["BEST", "LAST", "step-00000018", "step-00000020"]
    assert [line["step"] for line in lines(tmp_path / "run", "checkpoint")] == [2, 4, 14, 16, 18, 20]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
@pytest.mark.parametrize("on_error", ["stop", "go-on"])
def test_metrics_on_a_full_disk(
    small_disk: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str], on_error: str
) -> None:
    """The whole run folder is on it, TensorBoard's file as well."""
    trainer = start(small_disk / "run", manifest, max_steps=12, checkpoint__on_error=on_error)
    step = trainer.stepper.step

    def watched(*arguments: Any) -> Any:
        if trainer.state.at.step == 3:
            fill(small_disk, 0)
        trainer.writer.flush()
        return step(*arguments)

    trainer.stepper.step = watched  # type: ignore[method-assign]
    if on_error == "stop":
        with pytest.raises(FailedError, match=r"metrics\.jsonl: cannot be written: No space left on device"):
            trainer.train()
        return
    # Without its last checkpoint a run is not done, whatever it may go on without.
    with pytest.raises(AgreedError, match="checkpoint of step 12 could not be written"):
        trainer.train()
    out = capsys.readouterr().out
    assert "warning: metrics of step 12 could not be written: No space left on device" in out


@pytest.mark.slow
def test_a_kill_at_any_moment_costs_one_interval(tmp_path: Path) -> None:
    """Fifty times in a row; then the run ends as one that nobody killed."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.killed", tmp_path, str(seed), "50"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"seed {seed}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "50 kills, " in done.stdout
    print(next(line for line in done.stdout.splitlines() if "50 kills" in line))
