"""The training loop: one for every architecture. It knows networks, batches and updates; what they mean is the job's affair."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpcdl.rundir import RunDir
from hpcdl.shards.loader import Batch, Loader, ShardReader
from hpcdl.shards.manifest import Manifest
from hpcdl.shards.order import SampleOrder
from hpcdl.train import checkpoint
from hpcdl.train.communicator import Communicator, Reducer
from hpcdl.train.interrupt import StopFlag
from hpcdl.train.job import JobBase, Mean, Sums, Update
from hpcdl.train.metrics import MetricsWriter
from hpcdl.train.schedule import make_optimizer, rate
from hpcdl.train.settings import TrainSettings


@dataclass
class Position:
    """Where in the run: `step` optimizer steps are done, and the next batch is number `batch` of `epoch`."""

    step: int = 0
    epoch: int = 0
    batch: int = 0


@dataclass
class Window:
    """What is added up between two lines of metrics: means by name, and seconds by what they were spent on."""

    means: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"data": 0.0, "compute": 0.0, "comm": 0.0})
    samples: int = 0

    def add(self, name: str, mean: Mean) -> None:
        """Add one rank's part of a mean."""
        pair = torch.stack([mean.total.detach().float(), mean.weight.detach().float()])
        self.means[name] = [pair] if name not in self.means else [self.means[name][0] + pair]

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the seconds of a block."""
        start = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - start


class Trainer:
    """One rank of a training run."""

    def __init__(
        self,
        run: RunDir,
        job: JobBase,
        manifest: Manifest,
        settings: TrainSettings,
        comm: Communicator,
        needs: tuple[str, ...],
    ) -> None:
        self.run, self.job, self.settings, self.comm = run, job, settings, comm
        self.device = (
            torch.device("cuda", comm.local_rank % torch.cuda.device_count())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
        self.autocast = _autocast(settings.precision, self.device)
        # The same initial weights on every rank and for any number of ranks; afterwards each rank draws its own dropout.
        torch.manual_seed(settings.seed)
        self.networks = {name: network.to(self.device) for name, network in job.networks().items()}
        comm.broadcast([tensor for network in self.networks.values() for tensor in network.state_dict().values()])
        torch.manual_seed(settings.seed * 1_000_003 + comm.rank + 1)
        self.averaged = (
            {name: copy.deepcopy(network).requires_grad_(False) for name, network in self.networks.items()}
            if settings.ema
            else {}
        )
        self.reducers: dict[str, Reducer] = {
            name: comm.reducer(
                make_optimizer(network, settings.optimizer),
                network,
                settings.accumulate,
                settings.compression == "fp16",
            )
            for name, network in self.networks.items()
        }
        self.optimizers = {name: reducer.optimizer for name, reducer in self.reducers.items()}
        self.peak = settings.optimizer.lr * (comm.size if settings.scale_lr else 1)
        self.scales: dict[int, float] = {}
        self.loaders = {
            split: Loader(reader, self._order(manifest, split, len(reader)), comm.rank, comm.size)
            for split in ("train", "val")
            if len(reader := ShardReader(manifest, split, needs))
        }
        self.batches_per_epoch = self.loaders["train"].order.num_batches
        self.num_steps = settings.epochs * self.batches_per_epoch
        if settings.max_steps:
            self.num_steps = min(self.num_steps, settings.max_steps)
        self.at = Position()
        self.window = Window()
        self.writer = MetricsWriter(run, active=comm.rank == 0)
        self.flag = StopFlag()
        self.stopping = False

    def _order(self, manifest: Manifest, split: str, num_samples: int) -> SampleOrder:
        shuffled = split == "train"
        return SampleOrder(manifest.digest, num_samples, self.settings.batch_size, self.settings.seed, shuffled)

    def train(self) -> bool:
        """Train to the end; False when a signal asked to stop before it. The state is saved either way."""
        self.resume()
        while self.at.step < self.num_steps and not self.stopping:
            self._epoch()
        if self.writer.active:
            print(f"stopped at step {self.at.step}" if self.stopping else f"done: {self.at.step} steps", flush=True)
        self.writer.close()
        return not self.stopping

    def _epoch(self) -> None:
        settings, last = self.settings, False
        batches = self.loaders["train"].batches(self.at.epoch, self.at.batch)
        with contextlib.closing(batches):
            while True:
                with self.window.timed("data"):
                    batch = next(batches, None)
                if batch is None:
                    break
                self._step(batch, self.window)
                self.at.step, self.at.batch = self.at.step + 1, self.at.batch + 1
                if self.at.batch == self.batches_per_epoch:
                    self.at.epoch, self.at.batch = self.at.epoch + 1, 0
                last = self.at.step == self.num_steps
                if self.at.step % settings.log_every == 0 or last or self.stopping:
                    self._log(self.window)
                    self.window = Window()
                if last or self.stopping:
                    break
        ended = self.at.batch == 0
        save = self.stopping or last or (ended and _due(self.at.epoch, settings.checkpoint_every))
        validate = not self.stopping and (last or (ended and _due(self.at.epoch, settings.val_every)))
        if save or validate:
            self._average_statistics()
        # Saved first: a validation may take long, and a node may fail in it.
        if save:
            self._save()
        if validate:
            self._validate()
            if self.stopping and not save:
                self._save()

    def _step(self, batch: Batch, window: Window) -> None:
        """One batch: all the updates that the job asks for, each summed over this rank's parts and over the ranks."""
        factor = rate(self.at.step, self.num_steps, self.settings.schedule) * self.peak
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = factor
        for network in self.networks.values():
            network.train()
        parts = batch.to(self.device).parts(self.settings.accumulate)
        # The parts go through the job's generator in lockstep, so that each of its updates sees all of them.
        steps = [self.job.training_step(self.networks, part) for part in parts]
        number = 0
        while self._update(number, steps, window):
            number += 1
        window.samples += self.settings.batch_size

    def _update(self, number: int, steps: list[Iterator[Update]], window: Window) -> bool:
        weight = torch.zeros((), device=self.device)
        update: Update | None = None
        parameters: list[nn.Parameter] = []
        wait = None
        for position, step in enumerate(steps):
            with window.timed("compute"):
                with self.autocast:
                    update = next(step, None)
                if update is None:
                    return False
                if position == 0:
                    parameters = [
                        p for name in update.networks for p in self.networks[name].parameters() if p.requires_grad
                    ]
                    for parameter in parameters:
                        parameter.grad = None
                scale = self._scale(number, update.loss.weight)
                weight = weight + update.loss.weight.detach()
                if position == len(steps) - 1:
                    # Weights travel while backward runs: [weight of the loss, ranks that were asked to stop].
                    pair = torch.stack([weight.float(), torch.tensor(float(self.flag.asked), device=self.device)])
                    wait = self.comm.sum_async(pair, f"weight.{number}")
                (update.loss.total * scale).backward(inputs=parameters)
            window.add("loss" if len(self.networks) == 1 else "loss_" + "_".join(update.networks), update.loss)
            for name, mean in update.metrics.items():
                window.add(name, mean)
        assert update is not None
        assert wait is not None
        with window.timed("comm"):
            for name in update.networks:
                self.reducers[name].finish()
            global_weight, stop = wait().tolist()
        with window.timed("compute"):
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            torch._foreach_mul_(gradients, 1 / (scale * global_weight) if global_weight else 0.0)
            if self.settings.optimizer.clip_norm:
                nn.utils.clip_grad_norm_(parameters, self.settings.optimizer.clip_norm, foreach=True)
            for name in update.networks:
                self.reducers[name].step()
                self._average(name)
        self.stopping = self.stopping or stop > 0
        return True

    def _scale(self, number: int, weight: torch.Tensor) -> float:
        """A power of two near 1 / weight: keeps gradients in the range of fp16 without changing a bit of the result."""
        if number not in self.scales:
            total = self.comm.sum(weight.detach().float().reshape(1), f"scale.{number}").item()
            self.scales[number] = 2.0 ** -round(math.log2(max(1.0, total / self.comm.size)))
        return self.scales[number]

    def _average(self, name: str) -> None:
        """Let the averaged weights follow; early on with a shorter memory, so that the initial weights are soon forgotten."""
        if not self.averaged:
            return
        decay = min(self.settings.ema, (1 + self.at.step) / (10 + self.at.step))
        averaged, current = self.averaged[name], self.networks[name]
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), list(current.parameters()), 1 - decay)
            for old, new in zip(averaged.buffers(), current.buffers(), strict=True):
                old.copy_(new)

    def _average_statistics(self) -> None:
        """Make batch-norm statistics the mean of all ranks', so that validation and checkpoints are one network's."""
        for networks in (self.networks, self.averaged):
            for name, network in networks.items():
                self.comm.average(network.buffers(), f"buffers.{name}")

    def _log(self, window: Window) -> None:
        # Only what a step takes: validation and checkpoints between two lines are not the network's speed.
        elapsed = sum(window.seconds.values())
        names = sorted(window.means)
        own = [value for name in names for value in window.means[name][0].tolist()]
        own += [*window.seconds.values(), elapsed]
        values = self.comm.sum(torch.tensor(own, dtype=torch.float64), "metrics").tolist()
        line: dict[str, Any] = {
            "epoch": round((self.at.step) / self.batches_per_epoch, 4),
            "num_steps": self.num_steps,
        }
        for place, name in enumerate(names):
            total, weight = values[2 * place : 2 * place + 2]
            line[name] = total / weight if weight else math.nan
        line["lr"] = self.optimizers[next(iter(self.optimizers))].param_groups[0]["lr"]
        line["samples_per_s"] = window.samples / elapsed
        for place, name in enumerate(window.seconds):
            line[f"{name}_share"] = values[2 * len(names) + place] / values[-1]
        line["time"] = time.time()
        self.writer.write("train", self.at.step, line)

    @torch.no_grad()
    def _validate(self) -> None:
        if "val" not in self.loaders:
            return
        networks = self.averaged or self.networks
        for network in networks.values():
            network.eval()
        sums: Sums = {}
        with contextlib.closing(self.loaders["val"].batches(0)) as batches:
            for batch in batches:
                with self.autocast:
                    part = self.job.validation_step(networks, batch.to(self.device))
                sums = {name: sums[name] + value if name in sums else value for name, value in part.items()}
                # A stop in a long validation is agreed on here: the next step may come too late.
                if self.comm.sum(torch.tensor([float(self.flag.asked)]), "val.stop").item() > 0:
                    self.stopping = self.at.step < self.num_steps
                    return
        sums = {name: self.comm.sum(value.double(), f"val.{name}") for name, value in sums.items()}
        self.writer.write(
            "val", self.at.step, {"epoch": self.at.step / self.batches_per_epoch, **self.job.summarise(sums)}
        )

    def _save(self) -> Path:
        state = {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "averaged": {name: network.state_dict() for name, network in self.averaged.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "position": vars(self.at),
            "num_ranks": self.comm.size,
        }
        return checkpoint.save(self.run.checkpoints, self.at.step, state, self.comm, self.settings.keep)

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found = checkpoint.newest(self.run.checkpoints)
        if found is None:
            return
        state = checkpoint.load(found)
        for kind, objects in (
            ("networks", self.networks),
            ("averaged", self.averaged),
            ("optimizers", self.optimizers),
        ):
            for name, one in objects.items():
                one.load_state_dict(state[kind][name])
        self.at = Position(**state["position"])
        if not checkpoint.restore_random_state(found, self.comm.rank) or state["num_ranks"] != self.comm.size:
            torch.manual_seed(self.settings.seed * 1_000_003 + self.comm.rank + 1 + self.at.step)
        if self.writer.active:
            print(f"resumed from {found.name}", flush=True)


def _due(epoch: int, every: int) -> bool:
    return every > 0 and epoch % every == 0


def _autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    wanted = precision == "bf16" or (precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)
