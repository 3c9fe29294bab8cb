"""Gradients of one network summed over the ranks in buckets of fixed contents, while backward still runs.

The buckets are what makes a run repeatable bit by bit: Horovod fuses whatever tensors happen to be ready within a
cycle, and with more than two ranks the place of an element in the fused buffer decides in which order it is summed.
Here every element has its place.

DistributedDataParallel wraps a network's forward and reduces in any backward through it, which a generator's
discriminator must not do; this hooks parameters instead and works with backward passes that compute only some
networks' gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

SumAsync = Callable[[torch.Tensor, str], Callable[[], torch.Tensor]]

SMALLEST_BYTES, LARGEST_BYTES = 2**20, 25 * 2**20
"""Large enough for bandwidth, small enough to start early; in between an eighth of the network."""


class GradientBuckets:
    """Buckets in reverse order of the parameters, which is about the order in which backward finishes them."""

    def __init__(self, network: nn.Module, name: str, accumulate: int, fp16: bool, sum_async: SumAsync) -> None:
        self.name, self.accumulate, self.fp16, self.sum_async = name, accumulate, fp16, sum_async
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        total = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
        limit = min(LARGEST_BYTES, max(SMALLEST_BYTES, total // 8))
        self.buckets: list[list[nn.Parameter]] = [[]]
        num_bytes = 0
        for parameter in reversed(parameters):
            if num_bytes >= limit:
                self.buckets.append([])
                num_bytes = 0
            self.buckets[-1].append(parameter)
            num_bytes += parameter.numel() * parameter.element_size()
        self.owner = {parameter: number for number, bucket in enumerate(self.buckets) for parameter in bucket}
        self._begin()
        for parameter in self.owner:
            parameter.register_post_accumulate_grad_hook(self._ready)

    def finish(self) -> None:
        """Wait for all buckets; one whose parameters did not all take part in backward is reduced now."""
        for number in range(len(self.buckets)):
            self._start_up_to(number)
        for bucket, wait in zip(self.buckets, self.flying, strict=True):
            parts = torch.split(wait(), [parameter.numel() for parameter in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                assert parameter.grad is not None
                parameter.grad.copy_(part.view_as(parameter))
        self._begin()

    def _begin(self) -> None:
        self.missing = [len(bucket) * self.accumulate for bucket in self.buckets]
        self.flying: list[Callable[[], torch.Tensor]] = []

    def _ready(self, parameter: torch.Tensor) -> None:
        self.missing[self.owner[parameter]] -= 1  # type: ignore[index]
        # Every rank must start its buckets in the same order, whatever order backward took.
        while len(self.flying) < len(self.buckets) and self.missing[len(self.flying)] == 0:
            self._start_up_to(len(self.flying))

    def _start_up_to(self, number: int) -> None:
        while len(self.flying) <= number:
            bucket = self.buckets[len(self.flying)]
            fill_gradients(bucket)
            flat = torch.cat([p.grad.reshape(-1) for p in bucket if p.grad is not None])
            flat = flat.half() if self.fp16 else flat
            self.flying.append(self.sum_async(flat, f"{self.name}.{len(self.flying)}"))


def fill_gradients(parameters: list[nn.Parameter]) -> None:
    """Zeros for parameters that took no part in backward, so that optimizers treat them alike for any number of ranks."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
