"""Small trainings in this process, and what they left."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from hpcdl.architecture import TRAIN_SETTINGS_FILE
from hpcdl.catalog import bundled_root
from hpcdl.rundir import RunDir, read_lines
from hpcdl.settings import build, read_needs, read_settings, resolve
from hpcdl.shards.manifest import Manifest
from hpcdl.train import checkpoint
from hpcdl.train.communicator import Communicator, Single
from hpcdl.train.job import DataInfo, load_job
from hpcdl.train.loop import Trainer
from hpcdl.train.settings import TrainSettings

UNET = bundled_root() / "jobs" / "unet.py"
DCGAN = Path(__file__).parent / "dcgan.py"
TINY = Path(__file__).parent / "tiny_job.py"

TIMES = ("time", "samples_per_s", "data_share", "compute_share", "comm_share", "seconds")
"""What a line of metrics says of time; all else of it repeats."""


def make_trainer(
    folder: Path,
    manifest: Manifest,
    job_file: Path = TINY,
    stop_at: int = 0,
    permit: Callable[[], None] = lambda: None,
    comm: Communicator | None = None,
    **values: Any,
) -> Trainer:
    """A trainer that has not resumed yet; settings with a dot are written with two underscores."""
    known = read_settings(job_file) | read_settings(TRAIN_SETTINGS_FILE, "TrainSettings")
    quiet = {"batch_size": 8, "log_every": 1, "val_every": 0, "checkpoint.epochs": 0, "checkpoint.minutes": 0}
    given = {name.replace("__", "."): value for name, value in values.items()}
    settings = resolve(known, [("test", {**quiet, **given})], "test")
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    return Trainer(
        RunDir(folder), load_job(job_file, settings, DataInfo.of(manifest)), manifest, build(TrainSettings, settings),
        comm or Single(), read_needs(job_file), permit=permit, stop_at=stop_at,
    )  # fmt: skip


def start(folder: Path, manifest: Manifest, job_file: Path = TINY, **arguments: Any) -> Trainer:
    """A trainer that has gone on from what the folder holds."""
    trainer = make_trainer(folder, manifest, job_file, **arguments)
    trainer.resume()
    return trainer


def lines(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    """Lines of metrics of one split."""
    return [line for line in read_lines(folder / "metrics.jsonl") if line["split"] == split]


def numbers(folder: Path) -> list[dict[str, Any]]:
    """All lines of training and validation, without what they say of time."""
    return [
        {key: value for key, value in line.items() if key not in TIMES}
        for line in read_lines(folder / "metrics.jsonl")
        if line["split"] in ("train", "val")
    ]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: steps and values by name."""
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def newest(folder: Path) -> Path:
    """The newest checkpoint of a run, whose digests hold."""
    told: list[str] = []
    found = checkpoint.newest_good(folder / "checkpoints", told.append)
    assert found is not None
    assert told == []
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of the networks in a run's newest checkpoint."""
    networks = checkpoint.load(newest(folder))["networks"]
    return {f"{name}.{key}": value for name, state in networks.items() for key, value in state.items()}


def digest(trainer: Trainer) -> str:
    """sha256 over weights, averaged weights, statistics and the state of the optimizers."""
    state = trainer.state.shared()
    found = hashlib.sha256()
    for key in ("networks", "averaged", "optimizers", "best", "position", "loss_scale", "scales", "num_skipped"):
        _update(found, {key: state[key]})
    return found.hexdigest()


def _update(found: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        found.update(f"{value.dtype}{tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            found.update(str(key).encode())
            _update(found, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _update(found, item)
    else:
        found.update(repr(value).encode())
