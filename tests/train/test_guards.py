"""Steps that are not finite, half precision, and when there is nothing better to come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hpcdl.shards.manifest import Manifest
from hpcdl.train import checkpoint, guards
from hpcdl.train.best import Best
from hpcdl.train.guards import AgreedError, LossScale
from hpcdl.train.loop import Trainer
from hpcdl.train.settings import BestSettings
from tests.datasets import write_blobs
from tests.train.trainings import digest, lines, make_trainer, newest, numbers, start

STEADY: dict[str, Any] = {"schedule.name": "constant", "schedule.warmup": 0.0, "epochs": 100}
"""A rate that does not depend on the number of steps, so that a shorter run is the beginning of a longer one."""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_blobs(tmp_path_factory.mktemp("guards") / "data", {"train": 22, "val": 6})


def moving(trainer: Trainer) -> list[torch.Tensor]:
    """What a step moves: weights, averaged weights, the optimizer's state."""
    state = trainer.state
    networks = [*state.networks.values(), *state.averaged.values()]
    found = [parameter for network in networks for parameter in network.parameters()]
    return found + [
        value
        for optimizer in state.optimizers.values()
        for entry in optimizer.state.values()
        for value in entry.values()
    ]


def same(a: Trainer, b: Trainer) -> bool:
    return all(torch.equal(x, y) for x, y in zip(moving(a), moving(b), strict=True))


def finite(trainer: Trainer) -> bool:
    buffers = trainer.state.buffers().values()
    return all(bool(value.isfinite().all()) for value in [*moving(trainer), *buffers])


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_stop_leaves_the_weights_of_the_step_before(
    tmp_path: Path, manifest: Manifest, bad: str, accumulate: int
) -> None:
    values = {**STEADY, "accumulate": accumulate, "ema": 0.9, "checkpoint.steps": 2}
    call = 5 if accumulate == 1 else 10  # the second part of the fifth step
    broken = start(tmp_path / "run", manifest, **values, max_steps=9, bad=bad, bad_calls=str(call))
    with pytest.raises(AgreedError) as caught:
        broken.train()
    whole = start(tmp_path / "whole", manifest, **values, max_steps=4)
    whole.train()
    assert broken.state.at.step == 4
    assert same(broken, whole)
    told = str(caught.value)
    if bad == "loss":
        assert told.startswith("step 5: loss is nan on rank 0 (")
    else:
        assert told.startswith(
            "step 5: all loss terms are finite, the gradient of tiny.layers.0.weight is not; nor are "
        )
    assert "set on_nan=skip" in told
    assert "\n" not in told
    broken.saver.wait()
    assert newest(tmp_path / "run").name == "step-00000004"
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4]
    # What the message proposes: the same run without such a step goes on from there.
    mended = make_trainer(tmp_path / "run", manifest, **values, max_steps=9)
    assert mended.resume() == 4
    assert mended.train()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_skip_goes_on_as_if_the_step_had_not_been(
    tmp_path: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str], bad: str, accumulate: int
) -> None:
    values = {**STEADY, "accumulate": accumulate, "ema": 0.9, "max_steps": 9, "on_nan": "skip"}
    trainer = start(tmp_path / "run", manifest, **values, bad=bad, bad_calls=f"{2 * accumulate},{5 * accumulate}")
    before: dict[int, list[torch.Tensor]] = {}
    step = trainer.stepper.step

    def watched(*arguments: Any) -> Any:
        before[trainer.state.at.step] = [t.clone() for t in [*moving(trainer), *trainer.state.buffers().values()]]
        return step(*arguments)

    trainer.stepper.step = watched  # type: ignore[method-assign]
    assert trainer.train()
    for skipped in (1, 4):
        pairs = zip(before[skipped], before[skipped + 1], strict=False)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert not all(torch.equal(a, b) for a, b in zip(before[5], before[6], strict=True))
    assert finite(trainer)
    assert [trainer.state.num_skipped, trainer.state.skips_in_a_row] == [2, 0]
    told = lines(tmp_path / "run")
    assert [line.get("num_skipped", 0) for line in told] == [0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert ["loss" in line for line in told] == [step not in (2, 5) for step in range(1, 10)]
    out = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped: ")]
    assert [line[: len("skipped: step 2")] for line in out] == ["skipped: step 2", "skipped: step 5"]


def test_skipped_steps_are_remembered_by_a_checkpoint(tmp_path: Path, manifest: Manifest) -> None:
    values = {**STEADY, "max_steps": 9, "on_nan": "skip", "log_every": 4}
    whole = start(tmp_path / "whole", manifest, **values, bad_calls="2,6")
    whole.train()
    start(tmp_path / "run", manifest, **values, bad_calls="2,6", stop_at=3).train()
    second = start(tmp_path / "run", manifest, **values, bad_calls="3")  # its calls begin anew
    assert second.state.num_skipped == 1
    second.train()
    assert (digest(second), numbers(tmp_path / "run")) == (digest(whole), numbers(tmp_path / "whole"))


def test_too_many_skips_in_a_row_end_it(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcdl.train import step

    assert guards.MAX_SKIPS == 50
    monkeypatch.setattr(step, "MAX_SKIPS", 4)
    calls = "2,3,4,6,7,8,9"
    trainer = start(tmp_path / "run", manifest, **STEADY, on_nan="skip", bad_calls=calls)
    with pytest.raises(AgreedError, match=r"step 9: loss is nan .*4 updates in a row were not finite"):
        trainer.train()
    assert trainer.state.num_skipped == 7
    assert finite(trainer)


def test_fp16_trains_and_its_scale_adapts(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "GROWTH", 8)
    values = {**STEADY, "precision": "fp16", "optimizer.lr": 0.02, "ema": 0.5}
    trainer = start(tmp_path / "run", manifest, **values, max_steps=40, bad="gradient", bad_calls="3,4")
    assert trainer.train()
    told = lines(tmp_path / "run")
    scales = [line["loss_scale"] for line in told]
    assert scales[:4] == [2.0**16, 2.0**16, 2.0**15, 2.0**14]
    assert scales[4:11] == [2.0**14] * 7
    assert scales[11] == 2.0**15  # eight good ones
    assert max(scales) > 2.0**14
    assert told[-1]["loss"] < 0.5 * told[0]["loss"]
    assert trainer.state.num_skipped == 0  # an overflow is nobody's fault
    assert finite(trainer)


def test_fp16_goes_on_exactly(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "GROWTH", 4)
    values = {**STEADY, "precision": "fp16", "max_steps": 15, "bad": "gradient", "log_every": 4, "noise": True}
    whole = start(tmp_path / "whole", manifest, **values, bad_calls="2,9")
    whole.train()
    for stop, calls in ((2, "2"), (7, ""), (10, "2")):  # the ninth step is the second call of the third attempt
        trainer = start(tmp_path / "run", manifest, **values, bad_calls=calls, stop_at=stop)
        assert not trainer.train()
    last = start(tmp_path / "run", manifest, **values)
    assert last.state.loss_scale.value != LossScale.FIRST
    assert last.train()
    assert (digest(last), numbers(tmp_path / "run")) == (digest(whole), numbers(tmp_path / "whole"))


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_fp16_does_not_blame_the_scale_for_a_loss_that_is_not_finite(
    tmp_path: Path, manifest: Manifest, on_nan: str
) -> None:
    calls = ",".join(map(str, range(2, 200)))
    trainer = start(tmp_path / "run", manifest, **STEADY, precision="fp16", on_nan=on_nan, bad_calls=calls)
    with pytest.raises(AgreedError, match="loss is nan on rank 0"):
        trainer.train()
    assert trainer.state.at.step == (1 if on_nan == "stop" else guards.MAX_SKIPS)
    assert finite(trainer)


def test_fp16_may_be_switched_on_and_off(tmp_path: Path, manifest: Manifest) -> None:
    for steps, precision in ((2, "float32"), (4, "fp16"), (6, "float32"), (8, "bf16")):
        trainer = start(tmp_path / "run", manifest, **STEADY, max_steps=steps, precision=precision)
        assert trainer.state.loss_scale.value == (2.0**16 if precision == "fp16" else 1)
        assert trainer.train()


def see(values: list[float], **settings: Any) -> list[bool]:
    best = Best()
    return [best.see({"m": value}, step, BestSettings("m", **settings)) for step, value in enumerate(values)]


def test_what_is_better() -> None:
    nan = float("nan")
    assert see([nan, 3, 2, 2, nan, 1.5]) == [False, True, True, False, False, True]
    assert see([3, 2, 4, 4, 5], mode="max") == [True, False, True, False, True]
    assert see([3, 2.5, 1.9, 1.8], min_delta=1.0) == [True, False, True, False]
    assert see([0.1, 0.5, 0.7], mode="max", min_delta=0.25) == [True, True, False]
    assert see([float("inf"), 1]) == [True, True]
    best = Best()
    assert not best.exhausted(BestSettings("m", patience=0))
    for value in (1, 2, 3):
        best.see({"m": value}, 1, BestSettings("m"))
    assert best.waited == 2
    assert best.exhausted(BestSettings("m", patience=2))
    assert not best.exhausted(BestSettings("m", patience=3))
    assert Best(**best.state()) == best


SCORES = "0.2,0.5,0.4,0.5,0.3,0.9"
BEST = {**STEADY, "scores": SCORES, "val_every": 1, "best.metric": "score", "best.mode": "max", "epochs": 6}


def checkpoints(folder: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.checkpoints(folder / "checkpoints")]


def best_step(folder: Path) -> int:
    found = checkpoint.pointed(folder / "checkpoints", checkpoint.BEST)
    assert found is not None
    checkpoint.verify(found)
    return checkpoint.step_of(found)


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_best_is_kept(tmp_path: Path, manifest: Manifest, every: int, asynchronous: bool) -> None:
    values = {"checkpoint.epochs": every, "checkpoint.keep": 1, "checkpoint.asynchronous": asynchronous}
    start(tmp_path / "run", manifest, **{**BEST, "epochs": 5}, **values).train()
    assert [line["score"] for line in lines(tmp_path / "run", "val")] == [0.2, 0.5, 0.4, 0.5, 0.3]
    assert best_step(tmp_path / "run") == 6
    assert checkpoints(tmp_path / "run") == [6, 15]
    # A later, better one takes its place, in another attempt as well.
    last = start(tmp_path / "run", manifest, **BEST, **values)
    last.train()
    assert (last.state.best.value, last.state.best.step) == (0.9, 18)
    assert best_step(tmp_path / "run") == 18
    assert checkpoints(tmp_path / "run") == [18]


def test_the_smallest_may_be_the_best(tmp_path: Path, manifest: Manifest) -> None:
    start(tmp_path / "run", manifest, **{**BEST, "best.mode": "min"}).train()
    assert best_step(tmp_path / "run") == 3


def test_every_nth_is_kept_beside_the_best(tmp_path: Path, manifest: Manifest) -> None:
    values = {"checkpoint.epochs": 1, "checkpoint.keep": 2, "checkpoint.keep_every": 9}
    start(tmp_path / "run", manifest, **BEST, **values).train()
    assert checkpoints(tmp_path / "run") == [9, 15, 18]


@pytest.mark.parametrize("every", [0, 1])
def test_the_training_ends_when_nothing_better_comes(
    tmp_path: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str], every: int
) -> None:
    values = {**BEST, "checkpoint.epochs": every}
    first = start(tmp_path / "run", manifest, **values, **{"best.patience": 2})
    assert first.train()
    assert first.complete
    assert first.state.at.step == 12
    assert "done: 12 steps, no better score since step 6" in capsys.readouterr().out
    assert best_step(tmp_path / "run") == 6
    assert checkpoints(tmp_path / "run")[-1] == 12

    again = make_trainer(tmp_path / "run", manifest, **values, **{"best.patience": 2})
    step = again.stepper.step
    called = []
    again.stepper.step = lambda *arguments: called.append(arguments) or step(*arguments)  # type: ignore
    assert again.resume() == 12
    assert again.train()
    assert again.complete
    assert called == []
    assert [line["step"] for line in lines(tmp_path / "run", "val")] == [3, 6, 9, 12]
    assert best_step(tmp_path / "run") == 6

    longer = start(tmp_path / "run", manifest, **values, **{"best.patience": 4})
    assert longer.train()
    whole = start(tmp_path / "whole", manifest, **values, **{"best.patience": 4})
    assert whole.train()
    assert longer.state.at.step == 18
    assert best_step(tmp_path / "run") == 18
    assert (digest(longer), numbers(tmp_path / "run")) == (digest(whole), numbers(tmp_path / "whole"))


def test_patience_is_remembered_by_a_checkpoint(tmp_path: Path, manifest: Manifest) -> None:
    for stop in (4, 7, 10):
        assert not start(tmp_path / "run", manifest, **BEST, **{"best.patience": 2}, stop_at=stop).train()
    last = start(tmp_path / "run", manifest, **BEST, **{"best.patience": 2})
    assert last.train()
    assert last.state.at.step == 12


def test_an_unknown_metric_is_told_with_those_there_are(tmp_path: Path, manifest: Manifest) -> None:
    values = {"val_every": 1, "epochs": 2, "checkpoint.epochs": 1}
    with pytest.raises(AgreedError) as caught:
        start(tmp_path / "run", manifest, **values, **{"best.metric": "acuracy"}).train()
    assert str(caught.value) == "best.metric: the validation gives no number 'acuracy'; it gives: loss, accuracy"
    with pytest.raises(AgreedError, match="no number 'per_class'"):
        start(tmp_path / "mapping", manifest, **values, **{"best.metric": "per_class"}).train()


def test_a_job_without_a_loss_has_no_best_unless_asked() -> None:
    best = Best()
    assert not best.see({"real_seen": 0.5}, 1, BestSettings())
    assert best == Best()
    with pytest.raises(AgreedError, match="it gives: real_seen"):
        best.see({"real_seen": 0.5}, 1, BestSettings(patience=3))
