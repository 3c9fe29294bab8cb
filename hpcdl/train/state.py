"""Everything that decides how a training goes on: what a checkpoint holds, and how it is brought back.

Most of it is the same on all ranks and is written once. Each rank has for itself its random states, its batch-norm
statistics and its part of the line of metrics that is being added up. Nothing here changes the training when a
checkpoint is made: statistics are averaged over the ranks in copies, so that it never matters when, or how often, a
run was saved.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hpcdl.train import randomness
from hpcdl.train.best import Best
from hpcdl.train.communicator import Communicator
from hpcdl.train.guards import LossScale
from hpcdl.train.job import Mean
from hpcdl.train.schedule import make_optimizer
from hpcdl.train.settings import TrainSettings

SPENT = ("data", "compute", "comm")
"""What the seconds of a step are spent on."""


@dataclass
class Position:
    """Where in the run: `step` optimizer steps are done, and the next batch is number `batch` of `epoch`."""

    step: int = 0
    epoch: int = 0
    batch: int = 0


@dataclass
class Window:
    """What is added up between two lines of metrics: means by name, and seconds by what they were spent on."""

    means: dict[str, torch.Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPENT, 0.0))
    samples: int = 0

    def add(self, name: str, mean: Mean) -> None:
        """Add one rank's part of a mean."""
        pair = torch.stack([mean.total.detach().float(), mean.weight.detach().float()])
        self.means[name] = self.means[name] + pair if name in self.means else pair


class State:
    """The state of one rank.

    Attributes:
        averaged: networks whose weights follow as a moving average; empty without `ema`.
        scales: power of two near the inverse weight of each update's loss, by the update's number.
        num_skipped, skips_in_a_row: steps left out because they were not finite.
        pending_validation: whether this step has still to be validated.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], settings: TrainSettings, comm: Communicator, device: torch.device
    ) -> None:
        self.settings, self.comm, self.device = settings, comm, device
        self.networks = {name: network.to(device) for name, network in networks.items()}
        comm.broadcast([tensor for network in self.networks.values() for tensor in network.state_dict().values()])
        self.averaged = (
            {name: copy.deepcopy(network).requires_grad_(False) for name, network in self.networks.items()}
            if settings.ema
            else {}
        )
        self.optimizers = {name: make_optimizer(network, settings.optimizer) for name, network in self.networks.items()}
        self.at, self.best, self.window = Position(), Best(), Window()
        self.loss_scale = LossScale(settings.precision == "fp16")
        self.scales: dict[int, float] = {}
        self.num_skipped = self.skips_in_a_row = 0
        self.pending_validation = False

    def seed_rank(self) -> None:
        """Each rank its own random numbers, from here on."""
        randomness.seed_all(self.settings.seed * 1_000_003 + self.comm.rank + 1 + self.at.step)

    def follow(self, name: str) -> None:
        """Let the averaged weights follow; early on with a shorter memory, so that the initial weights are soon forgotten."""
        if not self.averaged:
            return
        decay = min(self.settings.ema, (1 + self.at.step) / (10 + self.at.step))
        averaged, current = self.averaged[name], self.networks[name]
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), list(current.parameters()), 1 - decay)
            for old, new in zip(averaged.buffers(), current.buffers(), strict=True):
                old.copy_(new)

    def buffers(self) -> dict[str, torch.Tensor]:
        """Batch-norm statistics and other buffers of all networks, as this rank has them."""
        return {
            f"{kind}.{name}.{key}": buffer
            for kind, networks in (("networks", self.networks), ("averaged", self.averaged))
            for name, network in networks.items()
            for key, buffer in network.named_buffers()
        }

    def copy_buffers(self) -> dict[str, torch.Tensor]:
        """The same, as they are now."""
        return {name: buffer.clone() for name, buffer in self.buffers().items()}

    @torch.no_grad()
    def restore_buffers(self, values: Mapping[str, torch.Tensor]) -> None:
        """Put copies back."""
        buffers = self.buffers()
        for name, value in values.items():
            buffers[name].copy_(value)

    @contextlib.contextmanager
    def mean_statistics(self, networks: Mapping[str, nn.Module]) -> Iterator[None]:
        """Batch-norm statistics are the mean of all ranks' in the block, and afterwards each rank's own again."""
        own = self.copy_buffers()
        for name, network in networks.items():
            for buffer, value in zip(network.buffers(), self.comm.mean(list(network.buffers()), name), strict=True):
                buffer.copy_(value)
        try:
            yield
        finally:
            self.restore_buffers(own)

    def shared(self) -> dict[str, Any]:
        """What is the same on all ranks, for state.pt; called on all ranks together."""
        return {
            "networks": {name: self._one(network, name) for name, network in self.networks.items()},
            "averaged": {name: self._one(network, name) for name, network in self.averaged.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "position": vars(self.at),
            "best": self.best.state(),
            "pending_validation": self.pending_validation,
            "loss_scale": self.loss_scale.state(),
            "scales": self.scales,
            "num_skipped": [self.num_skipped, self.skips_in_a_row],
            "num_ranks": self.comm.size,
        }

    def own(self) -> dict[str, Any]:
        """What each rank has for itself, for ranks.pt."""
        window = {"means": self.window.means, "seconds": self.window.seconds, "samples": self.window.samples}
        return {
            "random": randomness.state(),
            "buffers": self.buffers(),
            "window": window,
        }

    def restore(self, shared: Mapping[str, Any]) -> None:
        """Go on from what `shared` gave; random numbers are drawn anew until `restore_own` brings them back, too."""
        # A resumed run may ask for another weight decay; load_state_dict would bring the former one back.
        asked = [[group["weight_decay"] for group in one.param_groups] for one in self.optimizers.values()]
        for kind, objects in (
            ("networks", self.networks),
            ("averaged", self.averaged),
            ("optimizers", self.optimizers),
        ):
            for name, one in objects.items():
                one.load_state_dict(shared[kind][name])
        for optimizer, decays in zip(self.optimizers.values(), asked, strict=True):
            for group, decay in zip(optimizer.param_groups, decays, strict=True):
                group["weight_decay"] = decay
        self.at, self.best = Position(**shared["position"]), Best(**shared["best"])
        self.pending_validation = shared["pending_validation"]
        self.loss_scale.restore(shared["loss_scale"])
        self.scales = dict(shared["scales"])
        self.num_skipped, self.skips_in_a_row = shared["num_skipped"]
        self.seed_rank()

    def restore_own(self, own: Mapping[str, Any]) -> None:
        """Go on from what `own` gave on this rank, when there are as many ranks as then."""
        randomness.restore(own["random"])
        self.restore_buffers(own["buffers"])
        window = own["window"]
        means = {name: pair.to(self.device) for name, pair in window["means"].items()}
        self.window = Window(means, dict(window["seconds"]), window["samples"])

    def _one(self, network: nn.Module, name: str) -> dict[str, torch.Tensor]:
        """A network's state with averaged statistics, so that the checkpoint is one network's."""
        state, names = network.state_dict(), [key for key, _ in network.named_buffers()]
        means = self.comm.mean([buffer for _, buffer in network.named_buffers()], name)
        return state | {key: mean for key, mean in zip(names, means, strict=True) if key in state}
