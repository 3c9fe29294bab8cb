"""What keeps a step that is not finite away from the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from torch import nn

from hpcdl.errors import FailedError
from hpcdl.ranks import node_name
from hpcdl.train.communicator import Communicator
from hpcdl.train.job import Mean

MAX_SKIPS = 50
"""Steps in a row that may be left out: after these the weights themselves must be at fault."""


class AgreedError(FailedError):
    """An error that all ranks found together, and that rank 0 tells."""


class LossScale:
    """The factor that lifts a loss into the range of fp16 gradients: halved when one overflows, doubled after `GROWTH` good ones.

    A power of two, so that it changes no bit of a result that is in range. Micikevicius et al. 2018, arXiv:1710.03740.
    """

    FIRST, GROWTH = 2.0**16, 2000

    def __init__(self, active: bool) -> None:
        self.active = active
        self.value, self.good = (self.FIRST if active else 1.0), 0

    def overflowed(self) -> bool:
        """Take note of a gradient that is not finite; False when the scale cannot be to blame (any more)."""
        self.good = 0
        if not self.active or self.value <= 1:
            return False
        self.value /= 2
        return True

    def succeeded(self) -> None:
        """Take note of a finite gradient."""
        if not self.active:
            return
        self.good += 1
        if self.good == self.GROWTH:
            self.value, self.good = self.value * 2, 0

    def state(self) -> list[float]:
        """For a checkpoint; empty without fp16."""
        return [self.value, self.good] if self.active else []

    def restore(self, state: Sequence[float]) -> None:
        """Go on from a checkpoint, made with or without fp16."""
        if self.active and state:
            self.value, self.good = float(state[0]), int(state[1])


def blame(
    step: int, terms: Sequence[Mapping[str, Mean]], parameters: Mapping[str, nn.Parameter], comm: Communicator
) -> str:
    """Which loss term of which rank is not finite, or else which gradients are; called on all ranks together.

    Args:
        terms: of this rank's parts of the batch, by name.
        parameters: whose summed gradients are at hand.
    """
    bad = {name: mean.total.item() for part in terms for name, mean in part.items() if not is_finite(mean)}
    mine = {"host": node_name(), "bad": {name: str(value) for name, value in bad.items()}}
    answers = [json.loads(data) for data in comm.gather(json.dumps(mine).encode())]
    told = [
        f"{name} is {value} on rank {rank} ({answer['host']})"
        for rank, answer in enumerate(answers)
        for name, value in answer["bad"].items()
    ]
    if not told:
        wrong = [name for name, p in parameters.items() if p.grad is not None and not p.grad.isfinite().all()]
        told = [f"all loss terms are finite, the gradient of {name} is not" for name in wrong[:1]]
        told += [f"nor are those of {len(wrong) - 1} other parameters"] if len(wrong) > 1 else []
    more = f", and {len(told) - 4} more" if len(told) > 4 else ""
    return f"step {step}: " + "; ".join(told[:4] or ["the norm of the gradients is not finite"]) + more


def is_finite(mean: Mean) -> bool:
    """Whether a loss term is a number."""
    return math.isfinite(mean.total.item()) and math.isfinite(mean.weight.item())
