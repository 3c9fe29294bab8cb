"""One process of the throughput benchmark: `python -m tests.bench.worker MODE FOLDER NUMBER` prints its rate."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from hpcdl.architecture import TRAIN_SETTINGS_FILE
from hpcdl.catalog import bundled_root
from hpcdl.rundir import RunDir
from hpcdl.settings import build, read_settings
from hpcdl.shards.manifest import load_manifest
from hpcdl.train.communicator import Horovod, open_communicator
from hpcdl.train.job import DataInfo, load_job
from hpcdl.train.loop import Trainer
from hpcdl.train.settings import TrainSettings

WARM_UP, STEPS, EACH = 3, 12, 4
UNET = {"width": 32, "depth": 3, "norm": "none", "augment": "none"}


def bare(folder: Path, distributed: bool) -> float:
    """The loop that one would write by hand: the same network and batches, in memory and normalised; seconds."""
    job, _ = make_job(folder)
    torch.manual_seed(0)
    network: torch.nn.Module = job.networks()["unet"]
    if distributed:
        rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
        torch.distributed.init_process_group("gloo", init_method="env://", rank=rank, world_size=2)
        network = torch.nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    x, y = torch.randn(EACH, 4, 128, 128), torch.randint(0, 3, (EACH, 128, 128))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(x), y).backward()
        optimizer.step()

    return timed(iter(step, 0))


def hpcdl(folder: Path, comm_name: str, number: int) -> float:
    """The project's loop, loader and communicator; seconds."""
    size = 1 if comm_name == "single" else 2
    comm = FusedHorovod() if comm_name == "fused" else open_communicator(comm_name, size)
    run = folder / f"run-{comm_name}-{number}"
    run.mkdir(exist_ok=True)
    job, values = make_job(folder, {"batch_size": EACH * size, "log_every": 5, "epochs": 1000})
    manifest = load_manifest(folder / "data")
    trainer = Trainer(RunDir(run), job, manifest, build(TrainSettings, values), comm, ("image", "label"))
    batches = itertools.chain.from_iterable(trainer.loaders["train"].batches(epoch) for epoch in itertools.count())

    def steps() -> Iterator[None]:
        for batch in batches:
            trainer.stepper.step(batch, 1e-4)
            trainer.state.at.step += 1
            yield

    return timed(steps())


class FusedHorovod(Horovod):
    """Horovod with its own fusion of gradients, by its DistributedOptimizer's hooks, as it comes."""

    ENVIRONMENT: ClassVar[dict[str, str]] = {}

    def reducer(self, network: torch.nn.Module, name: str, accumulate: int, fp16: bool) -> Callable[[], None]:
        import horovod.torch as hvd

        optimizer = hvd.DistributedOptimizer(
            torch.optim.SGD(network.parameters(), lr=0.0), named_parameters=network.named_parameters(), op=hvd.Sum
        )
        finish: Callable[[], None] = optimizer.synchronize
        return finish


def make_job(folder: Path, more: dict[str, Any] | None = None) -> Any:
    """The U-Net of the benchmark, with its settings."""
    job_file = bundled_root() / "jobs" / "unet.py"
    known = read_settings(job_file) | read_settings(TRAIN_SETTINGS_FILE, "TrainSettings")
    values = {**{name: setting.default for name, setting in known.items()}, **UNET, **(more or {})}
    return load_job(job_file, values, DataInfo.of(load_manifest(folder / "data"))), values


def timed(steps: Iterator[None]) -> float:
    """Seconds of STEPS steps after WARM_UP ones."""
    for _ in range(WARM_UP):
        next(steps)
    start = time.perf_counter()
    for _ in range(STEPS):
        next(steps)
    return time.perf_counter() - start


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, where, which = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    seconds = bare(where, mode == "ddp") if mode in ("bare", "ddp") else hpcdl(where, mode, which)
    # One write: two ranks share the pipe.
    sys.stdout.write(f"rate {STEPS * EACH / seconds}\n")
    sys.stdout.flush()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
