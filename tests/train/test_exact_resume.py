"""A run that was stopped, killed or saved at any moment ends with the very bits of one that was left alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcdl.shards.manifest import Manifest
from hpcdl.train import checkpoint, randomness
from hpcdl.train.loop import Trainer
from tests.datasets import write_blobs
from tests.train.trainings import DCGAN, TINY, UNET, digest, lines, make_trainer, newest, numbers, scalars, start

pytestmark = pytest.mark.slow

NUM_STEPS = 15
COMMON: dict[str, Any] = {
    "epochs": 5, "accumulate": 2, "ema": 0.9, "dropout": 0.3, "log_every": 4, "val_every": 1, "optimizer.clip_norm": 1.0,
    "best.min_delta": 1e9,
}  # fmt: skip
"""Five epochs of three steps; a line of metrics every four, so that epochs end in the middle of one. The first validation is the
best: its checkpoint, of step 3, comes in addition to those that are due."""
JOBS: dict[str, tuple[Path, dict[str, Any]]] = {
    "tiny": (TINY, {**COMMON, "noise": True}),
    "unet": (UNET, {**COMMON, "width": 4, "depth": 2, "norm": "batch", "augment": "d4", "jitter": 0.1}),
    "dcgan": (DCGAN, {key: value for key, value in COMMON.items() if key != "dropout"}),
}
STOPS = [sorted(random.Random(seed).sample(range(1, NUM_STEPS), 3)) for seed in range(3)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_blobs(tmp_path_factory.mktemp("exact") / "data", {"train": 22, "val": 14})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """What each job comes to when nothing disturbs it."""
    found = {}
    for name, (job_file, values) in JOBS.items():
        folder = tmp_path_factory.mktemp("whole") / name
        trainer = start(folder, manifest, job_file, **values)
        assert trainer.train()
        found[name] = (digest(trainer), numbers(folder))
        assert [line["step"] for line in lines(folder)] == [4, 8, 12, 15]
        assert [line["step"] for line in lines(folder, "val")] == [3, 6, 9, 12, 15]
    return found


def stop_in_validation(trainer: Trainer, number: int) -> None:
    """Ask to stop while the validation of that number (from 1) is under way."""
    job, calls = trainer.job, 0
    step = job.validation_step

    def asked(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1  # two batches each
        if calls == 2 * number - 1:
            trainer.flag.asked = True
        return step(*arguments)

    job.validation_step = asked  # type: ignore[method-assign]


@pytest.mark.parametrize("stops", STOPS, ids=str)
@pytest.mark.parametrize("name", JOBS)
def test_stopped_at_any_step(tmp_path: Path, manifest: Manifest, whole: Any, name: str, stops: list[int]) -> None:
    job_file, values = JOBS[name]
    for before, stop in zip([0, *stops], stops, strict=False):
        trainer = make_trainer(tmp_path / "run", manifest, job_file, stop_at=stop, **values)
        assert trainer.resume() == before
        assert not trainer.train()
        assert trainer.state.at.step == stop
        random.random(), np.random.random(), torch.rand(1)  # what happens between two attempts must not matter
    trainer = start(tmp_path / "run", manifest, job_file, **values)
    assert trainer.train()
    assert (digest(trainer), numbers(tmp_path / "run")) == whole[name]


@pytest.mark.parametrize("stop", [3, 6, 14])
def test_stopped_where_a_validation_is_due(tmp_path: Path, manifest: Manifest, whole: Any, stop: int) -> None:
    """The step comes first, then the stop: its validation is the first thing that the next attempt does."""
    job_file, values = JOBS["tiny"]
    first = start(tmp_path / "run", manifest, job_file, stop_at=stop, **values)
    first.train()
    assert first.state.pending_validation == (stop % 3 == 0)
    assert [line["step"] for line in lines(tmp_path / "run", "val")] == list(range(3, stop, 3))
    second = start(tmp_path / "run", manifest, job_file, **values)
    assert second.train()
    assert (digest(second), numbers(tmp_path / "run")) == whole["tiny"]


@pytest.mark.parametrize("number", [1, 3, 5])
@pytest.mark.parametrize("saved", [False, True])
def test_stopped_in_a_validation(tmp_path: Path, manifest: Manifest, whole: Any, number: int, saved: bool) -> None:
    job_file, values = JOBS["tiny"]
    values = {**values, "checkpoint.epochs": int(saved)}
    first = start(tmp_path / "run", manifest, job_file, **values)
    stop_in_validation(first, number)
    assert not first.train()
    assert first.state.at.step == 3 * number
    assert [line["step"] for line in lines(tmp_path / "run", "val")] == list(range(3, 3 * number, 3))
    again = start(tmp_path / "run", manifest, job_file, **values)
    stop_in_validation(again, 1)  # and once more in the same one
    assert not again.train()
    last = start(tmp_path / "run", manifest, job_file, **values)
    assert last.state.at.step == 3 * number
    assert last.train()
    assert (digest(last), numbers(tmp_path / "run")) == whole["tiny"]


@pytest.mark.parametrize(
    ("name", "every", "last", "asynchronous"),
    [
        ("tiny", 5, 9, True),
        ("tiny", 5, 13, False),
        ("tiny", 4, 8, True),
        ("tiny", 3, 14, False),
        ("tiny", 6, 6, True),
        ("tiny", 20, 7, False),
        ("unet", 5, 13, True),
        ("unet", 4, 8, False),
    ],
)
def test_killed_after_a_checkpoint(
    tmp_path: Path, manifest: Manifest, whole: Any, name: str, every: int, last: int, asynchronous: bool
) -> None:
    """All that was done since is done again, to the same numbers, and no step is told twice or not at all."""
    job_file, values = JOBS[name]
    values = {**values, "checkpoint.steps": every, "checkpoint.asynchronous": asynchronous}
    first = start(tmp_path / "run", manifest, job_file, **values)
    step = first.stepper.step

    def killed(*arguments: Any) -> Any:
        if first.state.at.step == last:
            first.saver.wait()
            raise KeyboardInterrupt
        return step(*arguments)

    first.stepper.step = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = make_trainer(tmp_path / "run", manifest, job_file, **values)
    assert second.resume() == max(3, last // every * every)
    assert second.train()
    assert (digest(second), numbers(tmp_path / "run")) == whole[name]


@pytest.mark.parametrize(
    "values", [{"checkpoint.steps": 1}, {"checkpoint.steps": 1, "checkpoint.asynchronous": False}, {}]
)
def test_saving_changes_nothing(tmp_path: Path, manifest: Manifest, whole: Any, values: dict[str, Any]) -> None:
    job_file, common = JOBS["tiny"]
    trainer = start(tmp_path / "run", manifest, job_file, **common, **values)
    assert trainer.train()
    assert (digest(trainer), numbers(tmp_path / "run")) == whole["tiny"]


def test_what_is_on_disk_is_what_was_trained(tmp_path: Path, manifest: Manifest) -> None:
    """A checkpoint is written while training goes on: it must hold the step that it names."""
    values = {**JOBS["tiny"][1], "checkpoint.steps": 1, "checkpoint.keep": 99}
    start(tmp_path / "often", manifest, **values).train()
    for stop in (1, 4, 9):
        trainer = start(tmp_path / f"stop{stop}", manifest, stop_at=stop, **values)
        trainer.train()
        often = checkpoint.load(tmp_path / "often/checkpoints" / checkpoint.name_of(stop))
        resumed = make_trainer(tmp_path / f"from{stop}", manifest, **values)
        resumed.state.restore(often)
        assert digest(resumed) == digest(trainer)


def test_every_generator_goes_on(tmp_path: Path, manifest: Manifest) -> None:
    """Drawn between two attempts, or not: what comes next is the same."""
    randomness.seed_all(3)
    random.gauss(0, 1), np.random.normal()  # both keep a second number for the next call
    state = checkpoint.on_cpu(randomness.state())
    path = tmp_path / "state.pt"
    torch.save(state, path)

    def draw() -> list[float]:
        drawn = [random.random(), random.gauss(0, 1), random.gauss(0, 1), float(random.randrange(1000))]
        drawn += [np.random.random(), np.random.normal(), np.random.normal(), float(np.random.randint(1000))]
        return drawn + torch.rand(3).tolist() + torch.randn(3).tolist()

    first = draw()
    randomness.seed_all(4)
    assert draw() != first
    randomness.restore(torch.load(path, weights_only=True))
    assert draw() == first


@pytest.mark.parametrize("written", [False, True])
def test_tensorboard_shows_each_step_once(tmp_path: Path, manifest: Manifest, written: bool) -> None:
    """Whether or not it had written out what came after the checkpoint of step 5 when the run was killed at step 9."""
    values = {**JOBS["tiny"][1], "log_every": 1, "checkpoint.steps": 5}
    first = start(tmp_path / "run", manifest, **values)
    step = first.stepper.step

    def killed(*arguments: Any) -> Any:
        if first.state.at.step == 9:
            first.saver.wait()
            if written:
                first.writer.flush()
            raise KeyboardInterrupt
        return step(*arguments)

    first.stepper.step = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert len(scalars(tmp_path / "run")["train/loss"]) >= (9 if written else 5)
    start(tmp_path / "run", manifest, **values).train()
    shown = scalars(tmp_path / "run")
    for split, number in (("train", 15), ("val", 5)):
        told = lines(tmp_path / "run", split)
        assert len(told) == number
        assert shown[f"{split}/loss"] == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in told]


def test_a_line_that_a_kill_cut_short_is_no_obstacle(tmp_path: Path, manifest: Manifest, whole: Any) -> None:
    job_file, values = JOBS["tiny"]
    start(tmp_path / "run", manifest, job_file, stop_at=9, **values).train()
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "step": 12, "lo')
    second = start(tmp_path / "run", manifest, job_file, **values)
    assert second.train()
    assert (digest(second), numbers(tmp_path / "run")) == whole["tiny"]


def test_more_epochs_go_on_where_fewer_ended(tmp_path: Path, manifest: Manifest) -> None:
    values = {**JOBS["tiny"][1], "schedule.name": "constant", "schedule.warmup": 0.0, "log_every": 3}
    long = start(tmp_path / "long", manifest, **values)
    long.train()
    start(tmp_path / "run", manifest, **{**values, "epochs": 2}).train()
    longer = make_trainer(tmp_path / "run", manifest, **values)
    assert longer.resume() == 6
    assert longer.train()
    assert digest(longer) == digest(long)
    told = [[{**line, "num_steps": 0} for line in numbers(tmp_path / name)] for name in ("run", "long")]
    assert told[0] == told[1]


def test_a_finished_run_stays_as_it_is(tmp_path: Path, manifest: Manifest, whole: Any) -> None:
    job_file, values = JOBS["tiny"]
    start(tmp_path / "run", manifest, job_file, **values).train()
    before = newest(tmp_path / "run")
    inode = before.stat().st_ino
    again = make_trainer(tmp_path / "run", manifest, job_file, **values)
    assert again.resume() == NUM_STEPS
    assert again.complete
    assert again.train()
    assert (digest(again), numbers(tmp_path / "run")) == whole["tiny"]
    assert newest(tmp_path / "run").stat().st_ino == inode
