from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcdl.architecture import TRAIN_SETTINGS_FILE
from hpcdl.catalog import bundled_root
from hpcdl.rundir import RunDir, read_lines
from hpcdl.settings import build, read_settings
from hpcdl.shards.manifest import Manifest
from hpcdl.train import checkpoint
from hpcdl.train.communicator import Single
from hpcdl.train.job import DataInfo, load_job
from hpcdl.train.loop import Trainer
from hpcdl.train.settings import TrainSettings
from tests.datasets import write_blobs

UNET = bundled_root() / "jobs" / "unet.py"
DCGAN = Path(__file__).parent / "dcgan.py"
SMALL = {"width": 4, "depth": 2, "norm": "group"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_blobs(tmp_path_factory.mktemp("loop") / "data", {"train": 22, "val": 6})


def trainer(folder: Path, manifest: Manifest, job_file: Path = UNET, **values: Any) -> Trainer:
    known = read_settings(job_file) | read_settings(TRAIN_SETTINGS_FILE, "TrainSettings")
    defaults = {name: setting.default for name, setting in known.items()}
    settings = {**defaults, "batch_size": 8, "log_every": 1, "val_every": 0, "checkpoint_every": 0, **values}
    folder.mkdir(exist_ok=True)
    needs = ("image", "label") if job_file == UNET else ("image",)
    job = load_job(job_file, settings, DataInfo.of(manifest))
    torch.set_num_threads(1)
    return Trainer(RunDir(folder), job, manifest, build(TrainSettings, settings), Single(), needs)


def lines(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    return [line for line in read_lines(folder / "metrics.jsonl") if line["split"] == split]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    networks = checkpoint.load(found)["networks"]
    return {f"{name}.{key}": value for name, state in networks.items() for key, value in state.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_unet_learns_the_blobs(tmp_path: Path, manifest: Manifest) -> None:
    values = {"epochs": 12, "optimizer.lr": 0.02, "class_weight": 0.5, "jitter": 0.02, "ema": 0.9, "val_every": 4}
    assert trainer(tmp_path / "run", manifest, **SMALL, **values).train()
    train, val = lines(tmp_path / "run"), lines(tmp_path / "run", "val")
    assert train[-1]["loss"] < 0.5 * train[0]["loss"]
    assert [line["step"] for line in val] == [12, 24, 36]
    assert val[-1]["accuracy"] > 0.8
    assert set(val[-1]["f1"]) == {"class 0", "class 1", "class 2"}
    shares = [train[-1][f"{what}_share"] for what in ("data", "compute", "comm")]
    assert 0 < sum(shares) <= 1.001


def test_parts_of_a_batch_add_up_to_the_batch(tmp_path: Path, manifest: Manifest) -> None:
    for name, accumulate in (("one", 1), ("four", 4)):
        trainer(tmp_path / name, manifest, **SMALL, accumulate=accumulate, max_steps=6, epochs=9).train()
    one, four = ([line["loss"] for line in lines(tmp_path / name)] for name in ("one", "four"))
    assert one == pytest.approx(four, rel=1e-5)


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path, manifest: Manifest, stop: int) -> None:
    values = {**SMALL, "norm": "batch", "dropout": 0.3, "epochs": 3, "ema": 0.9}
    trainer(tmp_path / "whole", manifest, **values).train()
    first = trainer(tmp_path / "parts", manifest, **values)
    step = first._step

    def interrupted(*arguments: Any) -> None:
        first.flag.asked = first.at.step + 1 == stop
        step(*arguments)

    first._step = interrupted  # type: ignore[method-assign]
    assert not first.train()
    assert first.at.step == stop
    second = trainer(tmp_path / "parts", manifest, **values)
    assert second.train()
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_two_networks_in_turn(tmp_path: Path, manifest: Manifest) -> None:
    run = trainer(tmp_path / "gan", manifest, DCGAN, epochs=3, val_every=3, accumulate=2, **{"optimizer.lr": 5e-3})
    before = {name: [p.clone() for p in network.parameters()] for name, network in run.networks.items()}
    assert run.train()
    for name, network in run.networks.items():
        assert all(not torch.equal(a, b) for a, b in zip(before[name], network.parameters(), strict=True))
    last = lines(tmp_path / "gan")[-1]
    assert {"loss_discriminator", "loss_generator", "caught"} <= set(last)
    assert lines(tmp_path / "gan", "val")[-1]["real_seen"] >= 0


def test_the_discriminator_gets_no_gradient_from_the_generators_step(tmp_path: Path, manifest: Manifest) -> None:
    """In one go or in two parts the weights are the same only if neither step leaks into the other network."""
    for name, accumulate in (("one", 1), ("two", 2)):
        trainer(tmp_path / name, manifest, DCGAN, epochs=2, accumulate=accumulate).train()
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)


def test_gradient_clipping_bounds_the_step(tmp_path: Path, manifest: Manifest) -> None:
    values = {"optimizer.name": "sgd", "optimizer.momentum": 0.0, "optimizer.weight_decay": 0.0, "optimizer.lr": 1.0}
    run = trainer(
        tmp_path / "clip",
        manifest,
        **SMALL,
        **values,
        max_steps=1,
        **{"optimizer.clip_norm": 1e-3, "schedule.warmup": 0.0},
    )
    before = torch.cat([p.detach().flatten() for p in run.networks["unet"].parameters()])
    run.train()
    after = torch.cat([p.detach().flatten() for p in run.networks["unet"].parameters()])
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_a_data_set_without_any_label_moves_nothing(tmp_path: Path, manifest: Manifest) -> None:
    run = trainer(tmp_path / "none", manifest, **SMALL, max_steps=1, **{"optimizer.weight_decay": 0.0})
    run.job.data = replace(run.job.data, ignore_index=255)
    run.job._labels = lambda batch: torch.full(batch["label"].shape, 255)  # type: ignore[attr-defined]
    before = [p.clone() for p in run.networks["unet"].parameters()]
    run.train()
    assert all(torch.equal(a, b) for a, b in zip(before, run.networks["unet"].parameters(), strict=True))
    assert lines(tmp_path / "none")[0]["loss"] is None


def test_metrics_are_json_and_tensorboard(tmp_path: Path, manifest: Manifest) -> None:
    trainer(tmp_path / "run", manifest, **SMALL, max_steps=2).train()
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert {"train/loss", "train/accuracy", "train/samples_per_s"} <= set(board.Tags()["scalars"])


def test_only_the_newest_checkpoints_are_kept_and_LAST_may_be_lost(tmp_path: Path, manifest: Manifest) -> None:
    trainer(tmp_path / "run", manifest, **SMALL, epochs=4, checkpoint_every=1, keep=2).train()
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["LAST", "step-00000009", "step-00000012"]
    (folder / "LAST").unlink()
    newest = checkpoint.newest(folder)
    assert newest is not None
    assert newest.name == "step-00000012"
    shutil.rmtree(newest)
    assert checkpoint.newest(folder) == folder / "step-00000009"
