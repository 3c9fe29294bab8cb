"""The same run for any number of ranks and either communicator: real mpirun, real Horovod, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from hpcdl.rundir import read_lines
from hpcdl.train import checkpoint
from tests.conftest import Hpcdl
from tests.datasets import write_blobs
from tests.train.trainings import newest

pytestmark = pytest.mark.slow

COMMON = ["--set", "batch_size=8", "--set", "log_every=1", "--set", "val_every=0", "--wait"]
UNET = ["unet", "--set", "width=4", "--set", "depth=2"]


def losses(name: str, key: str = "loss") -> list[float]:
    return [line[key] for line in read_lines(Path("runs") / name / "metrics.jsonl") if line["split"] == "train"]


def train(hpcdl: Hpcdl, name: str, *flags: str, ranks: int = 1) -> None:
    result = hpcdl("submit", *flags, *COMMON, "--data", "data", "--name", name, "--ntasks-per-node", str(ranks))
    assert result.code == 0, result.err


@pytest.mark.parametrize("norm", ["none", "group"])
def test_one_two_and_four_ranks_agree(hpcdl: Hpcdl, workdir: Path, norm: str) -> None:
    write_blobs(workdir / "data", {"train": 44})
    flags = [
        *UNET,
        "--set",
        f"norm={norm}",
        "--set",
        "epochs=4",
        "--set",
        "class_weight=0.5",
        "--set",
        "optimizer.clip_norm=1",
    ]
    train(hpcdl, "one", *flags)
    train(hpcdl, "two", *flags, ranks=2)
    train(hpcdl, "four", *flags, ranks=4)
    train(hpcdl, "torch", *flags, "--comm", "torch", "--set", "accumulate=2", ranks=2)
    assert len(losses("one")) == 24  # six batches an epoch, the last of them half full
    for name in ("two", "four", "torch"):
        assert losses(name)[:20] == pytest.approx(losses("one")[:20], rel=1e-4)


def test_half_precision_travels_as_well(hpcdl: Hpcdl, workdir: Path) -> None:
    write_blobs(workdir / "data", {"train": 24})
    flags = [*UNET, "--set", "norm=none", "--set", "epochs=3"]
    train(hpcdl, "one", *flags)
    for comm in ("horovod", "torch"):
        train(hpcdl, comm, *flags, "--comm", comm, "--set", "compression=fp16", ranks=2)
        assert losses(comm) != losses("one")
        assert losses(comm) == pytest.approx(losses("one"), rel=2e-3)


def test_two_networks_in_turn_on_two_ranks(hpcdl: Hpcdl, workdir: Path) -> None:
    write_blobs(workdir / "data", {"train": 24})
    (workdir / "configs" / "architectures").mkdir(parents=True)
    (workdir / "configs" / "architectures" / "dcgan.yaml").write_text("description: two networks\n")
    (workdir / "jobs").mkdir()
    shutil.copyfile(Path(__file__).parent / "dcgan.py", workdir / "jobs" / "dcgan.py")
    train(hpcdl, "one", "dcgan", "--set", "epochs=4")
    train(hpcdl, "two", "dcgan", "--set", "epochs=4", ranks=2)
    train(hpcdl, "torch", "dcgan", "--set", "epochs=4", "--comm", "torch", ranks=2)
    for key in ("loss_discriminator", "loss_generator", "caught"):
        assert losses("two", key) == pytest.approx(losses("one", key), rel=1e-3, abs=1e-3)
        assert losses("torch", key) == pytest.approx(losses("one", key), rel=1e-3, abs=1e-3)


def test_resume_on_another_number_of_ranks(hpcdl: Hpcdl, workdir: Path) -> None:
    write_blobs(workdir / "data", {"train": 40})
    # A constant rate, so that a run of two epochs begins as one of four.
    flags = [*UNET, "--set", "norm=group", "--set", "schedule.name=constant", "--set", "schedule.warmup=0"]
    train(hpcdl, "whole", *flags, "--set", "epochs=4")
    train(hpcdl, "parts", *flags, "--set", "epochs=2", ranks=2)
    result = hpcdl("resume", "parts", "--set", "epochs=4", "--ntasks-per-node", "4", "--wait")
    assert result.code == 0, result.err
    assert len(losses("parts")) == 20
    assert losses("parts") == pytest.approx(losses("whole"), rel=1e-4)
    assert json.loads(hpcdl("status", "parts", "--json").out)[0]["num_tasks"] == 4


def test_the_learning_rate_scales_with_the_ranks_only_when_asked(hpcdl: Hpcdl, workdir: Path) -> None:
    write_blobs(workdir / "data", {"train": 16})
    flags = [*UNET, "--set", "epochs=1", "--set", "schedule.warmup=0", "--set", "schedule.name=constant"]
    train(hpcdl, "plain", *flags, ranks=2)
    train(hpcdl, "scaled", *flags, "--set", "scale_lr=true", ranks=2)
    assert losses("plain", "lr") == [1e-3, 1e-3]
    assert losses("scaled", "lr") == [2e-3, 2e-3]


def test_checkpoints_hold_every_ranks_random_state(hpcdl: Hpcdl, workdir: Path) -> None:
    write_blobs(workdir / "data", {"train": 16})
    train(hpcdl, "run", *UNET, "--set", "epochs=2", ranks=2)
    found = newest(workdir / "runs" / "run")
    first, second = (checkpoint.load_rank(found, rank)["random"]["torch"] for rank in (0, 1))
    assert not torch.equal(first, second)
    assert checkpoint.load(found)["num_ranks"] == 2


def test_ranks_that_do_not_know_each_other_are_told(hpcdl: Hpcdl, workdir: Path) -> None:
    write_blobs(workdir / "data", {"train": 16})
    clusters = workdir / "configs" / "clusters"
    clusters.mkdir(parents=True)
    (clusters / "odd.yaml").write_text("scheduler: local\nlauncher: env\n")
    result = hpcdl("submit", *UNET, *COMMON, "--data", "data", "--cluster", "odd", "--ntasks-per-node", "2")
    assert result.code == 1
    assert "asked for 2 ranks, but this one sees 1" in result.err
