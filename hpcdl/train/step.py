"""One training step: the updates that a job asks for, summed over parts and ranks, kept from the weights when not finite."""

from __future__ import annotations

import contextlib
import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hpcdl.pulse import own_pulse
from hpcdl.shards.loader import Batch
from hpcdl.train.communicator import Communicator, sum_plain
from hpcdl.train.guards import MAX_SKIPS, AgreedError, blame, is_finite
from hpcdl.train.job import JobBase, Mean, Update
from hpcdl.train.settings import TrainSettings
from hpcdl.train.state import State

PHASES = {"data": "loads a batch", "compute": "computes", "comm": "waits for the others"}


@dataclass
class Wishes:
    """What one rank wants, or after a step what all ranks know alike, because it travelled with the step's sums.

    Attributes:
        stop: end the training after this step.
        save: a checkpoint is due by the clock.
        save_failed: the last checkpoint could not be written.
    """

    stop: bool = False
    save: bool = False
    save_failed: bool = False


class Stepper:
    """One rank's steps.

    Args:
        wishes: what this rank wants to have agreed on; asked once an update, while backward has still to run.
    """

    def __init__(
        self, job: JobBase, state: State, settings: TrainSettings, comm: Communicator, wishes: Callable[[], Wishes]
    ) -> None:
        self.job, self.state, self.settings, self.comm, self.wishes = job, state, settings, comm, wishes
        self.pulse = own_pulse()
        self.autocast = _autocast(settings.precision, state.device)
        self.finish_sums = {
            name: comm.reducer(network, name, settings.accumulate, settings.compression == "fp16")
            for name, network in state.networks.items()
        }
        self.agreed = Wishes()

    def step(self, batch: Batch, lr: float) -> Wishes:
        """All updates of one batch; what the ranks have agreed on. `stop` stays once it was said.

        Raises:
            AgreedError: a loss or gradient was not finite, and the settings do not say to skip it.
        """
        state = self.state
        for optimizer in state.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr
        for network in state.networks.values():
            network.train()
        parts = batch.to(state.device).parts(self.settings.accumulate)
        # The parts go through the job's generator in lockstep, so that each of its updates sees all of them.
        steps = [self.job.training_step(state.networks, part) for part in parts]
        self.agreed.save = self.agreed.save_failed = False
        number = 0
        while self._update(number, steps):
            number += 1
        state.window.samples += self.settings.batch_size
        return self.agreed

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the seconds of a block, and tell the pulse what it is."""
        self.pulse.phase(PHASES[what])
        start = time.perf_counter()
        yield
        self.state.window.seconds[what] += time.perf_counter() - start

    def _update(self, number: int, steps: list[Iterator[Update]]) -> bool:
        state = self.state
        # A forward pass on what is not finite spoils batch-norm statistics before anybody notices.
        guarded = self.settings.on_nan == "skip" or state.loss_scale.active
        buffers = state.copy_buffers() if guarded else {}
        weight = torch.zeros((), device=state.device)
        update: Update | None = None
        parameters: dict[str, nn.Parameter] = {}
        terms: list[dict[str, Mean]] = []
        wait = None
        for position, step in enumerate(steps):
            with self.timed("compute"):
                with self.autocast:
                    update = next(step, None)
                if update is None:
                    return False
                if position == 0:
                    parameters = self._parameters(update)
                    for parameter in parameters.values():
                        parameter.grad = None
                scale = self._scale(number, update.loss.weight) * state.loss_scale.value
                weight = weight + update.loss.weight.detach()
                if position == len(steps) - 1:
                    # What all ranks have to know travels while backward runs.
                    wait = self.comm.sum_async(self._message(weight, update), f"agree.{number}")
                (update.loss.total * scale).backward(inputs=list(parameters.values()))
            name = "loss" if len(state.networks) == 1 else "loss_" + "_".join(update.networks)
            terms.append({name: update.loss, **update.metrics})
        assert update is not None
        assert wait is not None
        with self.timed("comm"):
            for network in update.networks:
                self.finish_sums[network]()
            global_weight, stop, save, save_failed, names = wait().tolist()
        if names != self.comm.size * _check_sum(update):
            raise AgreedError(
                f"ranks report different terms of the loss; this one {', '.join(update.metrics) or 'none'}"
            )
        agreed = self.agreed
        self.agreed = Wishes(agreed.stop or stop > 0, agreed.save or save > 0, agreed.save_failed or save_failed > 0)
        with self.timed("compute"):
            gradients = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
            torch._foreach_mul_(gradients, 1 / (scale * global_weight) if global_weight else 0.0)
            norm = nn.utils.get_total_norm(gradients, foreach=True)
            if not norm.isfinite():
                state.restore_buffers(buffers)
                self._skip(terms, parameters)
                return True
            state.skips_in_a_row = 0
            state.loss_scale.succeeded()
            limit = self.settings.optimizer.clip_norm
            if limit:
                nn.utils.clip_grads_with_norm_(parameters.values(), limit, norm, foreach=True)
            for network in update.networks:
                state.optimizers[network].step()
                state.follow(network)
        for part in terms:
            for name, mean in part.items():
                state.window.add(name, mean)
        return True

    def _parameters(self, update: Update) -> dict[str, nn.Parameter]:
        return {
            f"{network}.{name}": parameter
            for network in update.networks
            for name, parameter in self.state.networks[network].named_parameters()
            if parameter.requires_grad
        }

    def _message(self, weight: torch.Tensor, update: Update) -> torch.Tensor:
        mine = self.wishes()
        rest = [mine.stop, mine.save, mine.save_failed, _check_sum(update)]
        return torch.cat([weight.float().reshape(1), torch.tensor(rest, dtype=torch.float32, device=weight.device)])

    def _scale(self, number: int, weight: torch.Tensor) -> float:
        """A power of two near 1 / weight: keeps gradients in the range of fp16 without changing a bit of the result."""
        scales = self.state.scales
        if number not in scales:
            total = self.comm.sum(weight.detach().float().reshape(1).clone(), f"scale.{number}").item()
            usable = math.isfinite(total) and total > 0
            scales[number] = 2.0 ** -round(math.log2(max(1.0, total / self.comm.size))) if usable else 1.0
        return scales[number]

    def _skip(self, terms: list[dict[str, Mean]], parameters: Mapping[str, nn.Parameter]) -> None:
        """Leave this update out, or end on all ranks before the weights have moved.

        Raises:
            AgreedError: as `on_nan` wants it.
        """
        state = self.state
        if state.loss_scale.active:
            # A loss that is not finite itself is none of the scale's business.
            wrong = any(not is_finite(mean) for part in terms for mean in part.values())
            if sum_plain(self.comm, [wrong], "wrong")[0] == 0 and state.loss_scale.overflowed():
                return
        reason = blame(state.at.step + 1, terms, parameters, self.comm)
        if self.settings.on_nan == "stop":
            raise AgreedError(
                f"{reason}. It did not reach the weights, and the last checkpoint is from before: lower optimizer.lr, set "
                "optimizer.clip_norm, or leave such steps out with --set on_nan=skip"
            )
        state.num_skipped, state.skips_in_a_row = state.num_skipped + 1, state.skips_in_a_row + 1
        if state.skips_in_a_row >= MAX_SKIPS:
            raise AgreedError(f"{reason}. {MAX_SKIPS} updates in a row were not finite: skipping does not help")
        if self.comm.rank == 0:
            print(f"skipped: {reason}", flush=True)


def _check_sum(update: Update) -> int:
    """Of the names of an update's terms; small, so that a sum over some thousand ranks is exact in float32."""
    return zlib.crc32(",".join(sorted(update.metrics)).encode()) % 4093


def _autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if precision == "fp16":
        return torch.autocast(device.type, dtype=torch.float16)
    wanted = precision == "bf16" or (precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)
