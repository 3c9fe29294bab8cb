"""A job for tests of the training itself: draws from every generator, and fails or scores where it is told to."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hpcdl.ranks import own_rank
from hpcdl.train import Batch, JobBase, Mean, Sums, Update

NEEDS = ("image", "label")


@dataclass(frozen=True)
class Settings:
    """What goes on, and what goes wrong."""

    width: int = 4
    """Maps."""
    dropout: float = 0.0
    """Dropout."""
    noise: bool = False
    """Add random numbers of python, numpy and torch to the images."""
    bad: Literal["loss", "gradient"] = "loss"
    """What is not finite: everything from the image on, or the gradient alone."""
    bad_calls: tuple[int, ...] = ()
    """Calls of training_step, from 1, in which it is so."""
    bad_rank: int = 0
    """Rank on which it is so."""
    scores: tuple[float, ...] = ()
    """What the validations give as `score`, in turn."""
    steps_per_score: int = 3
    """Steps between two validations."""


class Tiny(nn.Module):
    """Two convolutions, and a count of training steps that goes into checkpoints."""

    def __init__(self, channels: int, classes: int, settings: Settings) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, settings.width, 3, padding=1),
            nn.BatchNorm2d(settings.width),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Conv2d(settings.width, classes, 3, padding=1),
        )
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Scores."""
        if self.training:
            self.num_steps += 1
        return self.layers(x_BCHW)


class Job(JobBase):
    """Cross-entropy over labelled pixels."""

    settings: Settings
    calls = 0

    def networks(self) -> dict[str, nn.Module]:
        return {"tiny": Tiny(self.data.shapes["image"][0], len(self.data.class_names), self.settings)}

    def training_step(self, networks: Any, batch: Batch) -> Iterator[Update]:
        self.calls += 1
        x_BCHW = self._image(batch)
        if self.settings.noise:
            shift_3 = torch.tensor([random.gauss(0, 1), float(np.random.normal()), 0.0]) + torch.randn(3)
            x_BCHW = x_BCHW + 0.1 * shift_3.sum()
        x_BCHW = torch.where((batch.draws % 2 == 0).view(-1, 1, 1, 1), x_BCHW, x_BCHW.flip(-1))
        y_BHW = torch.where((batch.draws % 2 == 0).view(-1, 1, 1), self._label(batch), self._label(batch).flip(-1))
        bad = self.calls in self.settings.bad_calls and own_rank() == self.settings.bad_rank
        if bad and self.settings.bad == "loss":
            x_BCHW = x_BCHW * float("nan")
        scores_BKHW = networks["tiny"](x_BCHW)
        if bad and self.settings.bad == "gradient":
            scores_BKHW.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
        loss, right = self._loss(scores_BKHW, y_BHW)
        yield Update(("tiny",), loss, {"accuracy": right})

    def validation_step(self, networks: Any, batch: Batch) -> Sums:
        loss, right = self._loss(networks["tiny"](self._image(batch)), self._label(batch))
        numbers = [loss.total, loss.weight, right.total, right.weight, networks["tiny"].num_steps * loss.weight]
        return {"numbers": torch.stack([number.double() for number in numbers])}

    def summarise(self, sums: Sums) -> dict[str, Any]:
        loss, weight, right, known, steps = sums["numbers"].tolist()
        metrics: dict[str, Any] = {"loss": loss / weight, "accuracy": right / known, "per_class": {"none": 0.0}}
        if self.settings.scores:
            metrics["score"] = self.settings.scores[round(steps / weight) // self.settings.steps_per_score - 1]
        return metrics

    def _image(self, batch: Batch) -> torch.Tensor:
        return (batch["image"].float() - 1300) / 300

    def _label(self, batch: Batch) -> torch.Tensor:
        return torch.where(batch.mask.view(-1, 1, 1), batch["label"].long(), 255)

    def _loss(self, scores_BKHW: torch.Tensor, y_BHW: torch.Tensor) -> tuple[Mean, Mean]:
        total = F.cross_entropy(scores_BKHW.float(), y_BHW, ignore_index=255, reduction="sum")
        known = (y_BHW != 255).sum()
        return Mean(total, known.float()), Mean((scores_BKHW.argmax(1) == y_BHW).sum(), known)
