"""A job file for tests: what it predicts is known without training. Copied into a run folder, never imported."""

import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from hpcdl.train import JobBase

NEEDS = ("image", "label")


@dataclass(frozen=True)
class Settings:
    """What run.yaml may set."""

    mode: Literal["pixels", "constant", "conv", "nan", "fails"] = "pixels"
    """pixels: class k where the first band holds 100·(k + 1); constant: the same scores everywhere; conv: random weights."""


class Job(JobBase):
    """Scores from pixel values."""

    def networks(self):
        classes = len(self.data.class_names)
        return {"conv": nn.Conv2d(self.data.shapes["image"][0], classes, 9, padding=4)}

    def training_step(self, networks, batch):
        raise NotImplementedError

    def validation_step(self, networks, batch):
        raise NotImplementedError

    def summarise(self, sums):
        raise NotImplementedError

    def predict_step(self, networks, image_BCHW):
        classes, mode = len(self.data.class_names), self.settings.mode
        if mode == "fails" and os.environ.get("OMPI_COMM_WORLD_RANK") == "1":
            raise RuntimeError("made to fail")
        if mode == "conv":
            return networks["conv"](image_BCHW / 100)
        means_K11 = 100.0 * torch.arange(1, classes + 1, device=image_BCHW.device).view(-1, 1, 1)
        if mode == "pixels":
            return -(((image_BCHW[:, :1] - means_K11) / 50) ** 2)
        scores_BKHW = torch.zeros(len(image_BCHW), classes, *image_BCHW.shape[-2:], device=image_BCHW.device)
        scores_BKHW[:, 1] = float("nan") if mode == "nan" else 1.0
        return scores_BKHW
