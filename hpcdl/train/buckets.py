"""Gradients of one network summed over the ranks of torch.distributed in buckets, while backward still runs.

DistributedDataParallel wraps a network's forward and reduces in any backward through it, which a generator's
discriminator must not do; this hooks parameters instead and works with backward passes that compute only some networks' gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

BUCKET_BYTES = 25 * 2**20
"""As DistributedDataParallel: large enough for bandwidth, small enough to start early."""


class GradientBuckets:
    """Buckets in reverse order of the parameters, which is about the order in which backward finishes them."""

    def __init__(self, network: nn.Module, accumulate: int, fp16: bool) -> None:
        self.accumulate, self.fp16 = accumulate, fp16
        self.buckets: list[list[nn.Parameter]] = [[]]
        num_bytes = 0
        for parameter in reversed([p for p in network.parameters() if p.requires_grad]):
            if num_bytes > BUCKET_BYTES:
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
        for bucket, (flat, work) in zip(self.buckets, self.flying, strict=True):
            work.wait()
            parts = torch.split(flat, [parameter.numel() for parameter in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                assert parameter.grad is not None
                parameter.grad.copy_(part.view_as(parameter))
        self._begin()

    def _begin(self) -> None:
        self.missing = [len(bucket) * self.accumulate for bucket in self.buckets]
        self.flying: list[tuple[torch.Tensor, Any]] = []

    def _ready(self, parameter: torch.Tensor) -> None:
        self.missing[self.owner[parameter]] -= 1  # type: ignore[index]
        # Every rank must start its buckets in the same order, whatever order backward took.
        while len(self.flying) < len(self.buckets) and self.missing[len(self.flying)] == 0:
            self._start_up_to(len(self.flying))

    def _start_up_to(self, number: int) -> None:
        import torch.distributed as dist

        while len(self.flying) <= number:
            bucket = self.buckets[len(self.flying)]
            for parameter in bucket:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            flat = torch.cat([p.grad.reshape(-1) for p in bucket if p.grad is not None])
            flat = flat.half() if self.fp16 else flat
            self.flying.append((flat, dist.all_reduce(flat, async_op=True)))
