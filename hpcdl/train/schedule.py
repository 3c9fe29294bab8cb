"""Optimizers and the learning rate of each step."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from hpcdl.train.settings import OptimizerSettings, ScheduleSettings


def make_optimizer(network: nn.Module, settings: OptimizerSettings) -> Optimizer:
    """The optimizer of one network; weight decay spares everything of fewer than two axes (biases, norms)."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.name == "sgd":
        return SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)
    return AdamW(groups, lr=settings.lr, betas=(settings.momentum, 0.999))


def rate(step: int, num_steps: int, settings: ScheduleSettings) -> float:
    """Factor of the peak learning rate for step number `step` (from 0) of `num_steps`: warm-up, then cosine or constant."""
    warmup = round(settings.warmup * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    if settings.name == "constant":
        return 1.0
    done = (step - warmup) / max(1, num_steps - warmup)
    return settings.final + (1 - settings.final) * 0.5 * (1 + math.cos(math.pi * done))
