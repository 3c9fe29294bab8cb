"""A small DCGAN (Radford, Metz, Chintala 2016): two networks in turn; the loop must know no architecture."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import nn

from hpcdl.train import Batch, JobBase, Mean, Range, Sums, Update

NEEDS = ("image",)


@dataclass(frozen=True)
class Settings:
    """Sizes."""

    latent: Annotated[int, Range(1)] = 8
    """Numbers that an image is made from."""
    width: Annotated[int, Range(1)] = 8
    """Maps next to the image."""


class Job(JobBase):
    """Discriminator first, then the generator against the discriminator that has just moved."""

    def networks(self) -> dict[str, nn.Module]:
        channels, size, _ = self.data.shapes["image"]
        w = self.settings.width
        return {
            "generator": nn.Sequential(
                nn.ConvTranspose2d(self.settings.latent, 2 * w, size // 4),
                nn.GroupNorm(2, 2 * w),
                nn.ReLU(),
                nn.ConvTranspose2d(2 * w, w, 4, 2, 1),
                nn.ReLU(),
                nn.ConvTranspose2d(w, channels, 4, 2, 1),
            ),
            "discriminator": nn.Sequential(
                nn.Conv2d(channels, w, 4, 2, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(w, 2 * w, 4, 2, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(2 * w, 1, size // 4),
                nn.Flatten(),
            ),
        }

    def training_step(self, networks: Any, batch: Batch) -> Iterator[Update]:
        real, weight = self._real(batch), batch.mask.float()
        fake = networks["generator"](self._noise(batch))
        judge = networks["discriminator"]
        yield Update(
            ("discriminator",), self._loss(judge(real), 1, weight) + self._loss(judge(fake.detach()), 0, weight)
        )
        score = judge(fake)
        right = Mean(((score[:, 0] < 0) * weight).sum(), weight.sum())
        yield Update(("generator",), self._loss(score, 1, weight), {"caught": right})

    def validation_step(self, networks: Any, batch: Batch) -> Sums:
        scores = networks["discriminator"](self._real(batch))[:, 0]
        return {"real": torch.stack([(scores > 0)[batch.mask].sum(), batch.mask.sum()])}

    def summarise(self, sums: Sums) -> dict[str, Any]:
        return {"real_seen": (sums["real"][0] / sums["real"][1]).item()}

    def _real(self, batch: Batch) -> torch.Tensor:
        mean, std = (torch.tensor(v["image"]).view(1, -1, 1, 1) for v in (self.data.mean, self.data.std))
        return (batch["image"].float() - mean) / std

    def _noise(self, batch: Batch) -> torch.Tensor:
        draws = [
            torch.randn(self.settings.latent, generator=torch.Generator().manual_seed(int(d))) for d in batch.draws
        ]
        return torch.stack(draws)[:, :, None, None]

    def _loss(self, scores: torch.Tensor, target: int, weight: torch.Tensor) -> "Sum":
        losses = F.binary_cross_entropy_with_logits(
            scores[:, 0], torch.full_like(scores[:, 0], target), reduction="none"
        )
        return Sum((losses * weight).sum(), weight.sum())


class Sum(Mean):
    """A mean to which another of the same weight can be added."""

    def __add__(self, other: Mean) -> "Sum":
        return Sum(self.total + other.total, self.weight)
