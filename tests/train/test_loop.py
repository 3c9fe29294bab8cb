from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hpcdl.shards.manifest import Manifest
from hpcdl.train import checkpoint
from hpcdl.train.loop import Trainer
from tests.datasets import write_blobs
from tests.train.trainings import DCGAN, UNET, lines, make_trainer, newest, scalars, start, weights

SMALL = {"width": 4, "depth": 2, "norm": "group"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_blobs(tmp_path_factory.mktemp("loop") / "data", {"train": 22, "val": 6})


def flat(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.state.networks["unet"].parameters()])


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_unet_learns_the_blobs(tmp_path: Path, manifest: Manifest) -> None:
    values = {"epochs": 12, "optimizer.lr": 0.02, "class_weight": 0.5, "jitter": 0.02, "ema": 0.9, "val_every": 4}
    assert start(tmp_path / "run", manifest, UNET, **SMALL, **values).train()
    train, val = lines(tmp_path / "run"), lines(tmp_path / "run", "val")
    last_epoch = [line["loss"] for line in train[-3:]]
    assert sum(last_epoch) / len(last_epoch) < 0.5 * train[0]["loss"]
    assert [line["step"] for line in val] == [12, 24, 36]
    assert val[-1]["accuracy"] > 0.8
    assert set(val[-1]["f1"]) == {"class 0", "class 1", "class 2"}
    shares = [train[-1][f"{what}_share"] for what in ("data", "compute", "comm")]
    assert 0 < sum(shares) <= 1.001


def test_parts_of_a_batch_add_up_to_the_batch(tmp_path: Path, manifest: Manifest) -> None:
    for name, accumulate in (("one", 1), ("four", 4)):
        start(tmp_path / name, manifest, UNET, **SMALL, accumulate=accumulate, max_steps=6, epochs=9).train()
    one, four = ([line["loss"] for line in lines(tmp_path / name)] for name in ("one", "four"))
    assert one == pytest.approx(four, rel=1e-5)


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path, manifest: Manifest, stop: int) -> None:
    values = {**SMALL, "norm": "batch", "dropout": 0.3, "epochs": 3, "ema": 0.9}
    start(tmp_path / "whole", manifest, UNET, **values).train()
    first = start(tmp_path / "parts", manifest, UNET, stop_at=stop, **values)
    assert not first.train()
    assert first.state.at.step == stop
    second = make_trainer(tmp_path / "parts", manifest, UNET, **values)
    assert second.resume() == stop
    assert second.train()
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_signal_stops_it_after_the_step(tmp_path: Path, manifest: Manifest) -> None:
    run = start(tmp_path / "run", manifest, UNET, **SMALL, epochs=3)
    signal.raise_signal(signal.SIGUSR1)
    assert not run.train()
    assert newest(tmp_path / "run").name == "step-00000001"


def test_two_networks_in_turn(tmp_path: Path, manifest: Manifest) -> None:
    values = {"epochs": 3, "val_every": 3, "accumulate": 2, "optimizer.lr": 5e-3}
    run = start(tmp_path / "gan", manifest, DCGAN, **values)
    networks = run.state.networks
    before = {name: [p.clone() for p in network.parameters()] for name, network in networks.items()}
    assert run.train()
    for name, network in networks.items():
        assert all(not torch.equal(a, b) for a, b in zip(before[name], network.parameters(), strict=True))
    last = lines(tmp_path / "gan")[-1]
    assert {"loss_discriminator", "loss_generator", "caught"} <= set(last)
    assert lines(tmp_path / "gan", "val")[-1]["real_seen"] >= 0


def test_the_discriminator_gets_no_gradient_from_the_generators_step(tmp_path: Path, manifest: Manifest) -> None:
    """In one go or in two parts the weights are the same only if neither step leaks into the other network."""
    for name, accumulate in (("one", 1), ("two", 2)):
        start(tmp_path / name, manifest, DCGAN, epochs=2, accumulate=accumulate).train()
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)


def test_gradient_clipping_bounds_the_step(tmp_path: Path, manifest: Manifest) -> None:
    plain = {"optimizer.name": "sgd", "optimizer.momentum": 0.0, "optimizer.weight_decay": 0.0, "optimizer.lr": 1.0}
    values = {**SMALL, **plain, "optimizer.clip_norm": 1e-3, "schedule.warmup": 0.0}
    run = start(tmp_path / "clip", manifest, UNET, **values, max_steps=1)
    before = flat(run)
    run.train()
    assert (flat(run) - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_a_data_set_without_any_label_moves_nothing(tmp_path: Path, manifest: Manifest) -> None:
    run = start(tmp_path / "none", manifest, UNET, **SMALL, max_steps=1, **{"optimizer.weight_decay": 0.0})
    run.job.data = replace(run.job.data, ignore_index=255)
    run.job._labels = lambda batch: torch.full(batch["label"].shape, 255)  # type: ignore[attr-defined]
    before = flat(run)
    run.train()
    assert torch.equal(flat(run), before)
    assert lines(tmp_path / "none")[0]["loss"] is None


def test_metrics_are_json_and_tensorboard(tmp_path: Path, manifest: Manifest) -> None:
    start(tmp_path / "run", manifest, UNET, **SMALL, max_steps=2).train()
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
    assert {"train/loss", "train/accuracy", "train/samples_per_s"} <= set(scalars(tmp_path / "run"))


def test_the_log_says_what_a_start_and_a_checkpoint_cost(tmp_path: Path, manifest: Manifest) -> None:
    start(tmp_path / "run", manifest, **{"epochs": 2, "checkpoint.epochs": 1}).train()
    started, saved = lines(tmp_path / "run", "startup"), lines(tmp_path / "run", "checkpoint")
    assert [line["step"] for line in started] == [1]
    assert started[0]["seconds"] > 0
    assert [line["step"] for line in saved] == [3, 6]
    sizes = [sum(path.stat().st_size for path in newest(tmp_path / "run").glob("*.pt"))]
    assert [line["num_bytes"] for line in saved[1:]] == sizes
    assert all(line["stall_s"] >= 0 and line["write_s"] > 0 for line in saved)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("due", "steps"),
    [
        ({"epochs": 1}, [3, 6, 9, 12]),
        ({"epochs": 3}, [9, 12]),
        ({"steps": 5}, [5, 10, 12]),
        ({"epochs": 2, "steps": 5}, [5, 6, 10, 12]),
        ({"minutes": 1e-9}, list(range(1, 13))),
        ({}, [12]),
    ],
)
def test_when_checkpoints_are_made(
    tmp_path: Path, manifest: Manifest, due: dict[str, float], steps: list[int], asynchronous: bool
) -> None:
    values = {f"checkpoint.{key}": value for key, value in due.items()}
    values |= {"checkpoint.keep": 99, "checkpoint.asynchronous": asynchronous}
    start(tmp_path / "run", manifest, epochs=4, **values).train()
    found = checkpoint.checkpoints(tmp_path / "run" / "checkpoints")
    assert [checkpoint.step_of(path) for path in found] == steps


def test_only_the_newest_checkpoints_are_kept_and_LAST_may_be_lost(tmp_path: Path, manifest: Manifest) -> None:
    start(tmp_path / "run", manifest, epochs=4, **{"checkpoint.epochs": 1, "checkpoint.keep": 2}).train()
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["BEST", "LAST", "step-00000009", "step-00000012"]
    (folder / "LAST").unlink()
    assert newest(tmp_path / "run").name == "step-00000012"
    shutil.rmtree(newest(tmp_path / "run"))
    assert newest(tmp_path / "run").name == "step-00000009"
