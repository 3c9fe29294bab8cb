"""U-Net: per-pixel classes from images (Ronneberger, Fischer, Brox 2015, arXiv:1505.04597).

The published network with padded convolutions, so that the output is as large as the input: at each of `depth` levels two 3×3
convolutions with ReLU and a 2×2 max-pooling, twice the maps a level deeper, then back up by 2×2 up-convolutions with the skip
connections concatenated, and a 1×1 convolution to the classes. Width 64, depth 4, one channel, two classes, norm none:
31,030,658 parameters.

Axes: B batch, C channels, H rows, W columns, K classes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from hpcdl.train import Batch, DataInfo, JobBase, Mean, Range, Sums, Update

NEEDS = ("image", "label")


@dataclass(frozen=True)
class Settings:
    """What `--set` takes."""

    width: Annotated[int, Range(1, 1024)] = 64
    """Maps of the first level; each level down has twice as many."""
    depth: Annotated[int, Range(1, 8)] = 4
    """Poolings; the input is padded to a multiple of 2^depth where needed."""
    norm: Literal["none", "batch", "group"] = "batch"
    """Normalisation after each 3×3 convolution."""
    dropout: Annotated[float, Range(0, 0.95)] = 0.0
    """Dropout at the lowest level, as published (there 0.5)."""
    augment: Literal["none", "flips", "d4"] = "d4"
    """Random flips, or flips and quarter turns: a scene has no up."""
    jitter: Annotated[float, Range(0, 1)] = 0.0
    """Another day's light: a random offset of all bands with this standard deviation, and of each band with half of it,
    in units of the bands' own standard deviation."""
    class_weight: Annotated[float, Range(0, 1)] = 0.0
    """Weights classes by frequency to the power of minus this: 0 not at all, 1 all classes alike."""
    label_smoothing: Annotated[float, Range(0, 0.9)] = 0.0
    """Share of each target spread over all classes."""


class DoubleConv(nn.Sequential):
    """Two 3×3 convolutions, each with ReLU and, where asked for, a normalisation before it."""

    def __init__(self, channels_in: int, channels_out: int, norm: str) -> None:
        layers: list[nn.Module] = []
        for channels in (channels_in, channels_out):
            layers.append(nn.Conv2d(channels, channels_out, 3, padding=1, bias=norm == "none"))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(channels_out))
            elif norm == "group":
                layers.append(nn.GroupNorm(math.gcd(8, channels_out), channels_out))
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class UNet(nn.Module):
    """The network: B × C × H × W in, scores B × K × H × W out."""

    def __init__(self, channels: int, classes: int, settings: Settings) -> None:
        super().__init__()
        widths = [settings.width * 2**level for level in range(settings.depth + 1)]
        self.down = nn.ModuleList(
            DoubleConv(before, after, settings.norm) for before, after in zip([channels, *widths], widths, strict=False)
        )
        self.rise = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in reversed(widths[:-1]))
        self.up = nn.ModuleList(DoubleConv(2 * width, width, settings.norm) for width in reversed(widths[:-1]))
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Conv2d(widths[0], classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not self.head:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")  # as published: std = sqrt(2 / N)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Scores before softmax, as large as the input."""
        rows, columns = x_BCHW.shape[-2:]
        multiple = 2 ** len(self.rise)
        x = F.pad(x_BCHW, (0, -columns % multiple, 0, -rows % multiple), mode="replicate")
        # Convolutions are faster on channels-last activations; the weights stay contiguous, as Horovod wants its gradients.
        x = x.contiguous(memory_format=torch.channels_last)
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        x = self.dropout(skips.pop())
        for rise, block in zip(self.rise, self.up, strict=True):
            x = block(torch.cat([skips.pop(), rise(x)], dim=1))
        return self.head(x)[..., :rows, :columns]


class Job(JobBase):
    """Cross-entropy over labelled pixels; accuracy, IoU and F1 of each class."""

    settings: Settings

    def __init__(self, settings: Settings, data: DataInfo) -> None:
        super().__init__(settings, data)
        self.channels, self.classes = data.shapes["image"][0], len(data.class_names)
        if self.classes < 2:
            raise ValueError(f"needs a data set of at least two classes, this one has {self.classes}")
        # Mean weight 1 over the train pixels, so that the loss keeps its scale.
        share = torch.tensor(data.histogram, dtype=torch.float32).clamp(min=1)
        share = share / share.sum()
        self.weights = share**-settings.class_weight / (share ** (1 - settings.class_weight)).sum()

    def networks(self) -> dict[str, nn.Module]:
        return {"unet": UNet(self.channels, self.classes, self.settings)}

    def training_step(self, networks: Any, batch: Batch) -> Iterator[Update]:
        x_BCHW, y_BHW = self._augment(self._normalise(batch["image"]), self._labels(batch), batch.draws)
        scores_BKHW = networks["unet"](x_BCHW)
        loss, right = self._loss(scores_BKHW, y_BHW)
        yield Update(("unet",), loss, {"accuracy": right})

    def validation_step(self, networks: Any, batch: Batch) -> Sums:
        y_BHW = self._labels(batch)
        scores_BKHW = networks["unet"](self._normalise(batch["image"]))
        loss, _ = self._loss(scores_BKHW, y_BHW)
        known = y_BHW != self.data.ignore_index
        pairs = y_BHW[known] * self.classes + scores_BKHW.argmax(1)[known]
        return {
            "confusion": torch.bincount(pairs, minlength=self.classes**2),
            "loss": torch.stack([loss.total.float(), loss.weight.float()]),
        }

    def summarise(self, sums: Sums) -> dict[str, Any]:
        confusion = sums["confusion"].view(self.classes, self.classes)  # rows: truth, columns: prediction
        hit, truth, said = confusion.diag(), confusion.sum(1), confusion.sum(0)
        present = truth + said > 0
        iou, f1 = hit / (truth + said - hit).clamp(min=1), 2 * hit / (truth + said).clamp(min=1)
        return {
            "loss": (sums["loss"][0] / sums["loss"][1].clamp(min=1e-9)).item(),
            "accuracy": (hit.sum() / truth.sum().clamp(min=1)).item(),
            "mean_iou": iou[present].mean().item(),
            "macro_f1": f1[present].mean().item(),
            "iou": {name: iou[k].item() for k, name in enumerate(self.data.class_names) if present[k]},
            "f1": {name: f1[k].item() for k, name in enumerate(self.data.class_names) if present[k]},
        }

    def predict_step(self, networks: Any, image_BCHW: torch.Tensor) -> torch.Tensor:
        return networks["unet"](self._normalise(image_BCHW))

    def _normalise(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """Each band to mean 0 and standard deviation 1 of the train split; pixels without data become 0."""
        x = image_BCHW.float()
        fill = self.data.fill.get("image")
        if fill is not None:
            missing = (x.isnan() if fill != fill else x == fill).all(dim=1, keepdim=True)
        mean, std = (
            torch.tensor(values["image"], device=x.device).view(1, -1, 1, 1)
            for values in (self.data.mean, self.data.std)
        )
        x = (x - mean) / std.clamp(min=1e-6)
        return x if fill is None else torch.where(missing, 0.0, x)

    def _labels(self, batch: Batch) -> torch.Tensor:
        return torch.where(batch.mask.view(-1, 1, 1), batch["label"].long(), self.data.ignore_index)

    def _loss(self, scores_BKHW: torch.Tensor, y_BHW: torch.Tensor) -> tuple[Mean, Mean]:
        weights = self.weights.to(scores_BKHW.device)
        ignore = self.data.ignore_index
        total = F.cross_entropy(
            scores_BKHW.float(),
            y_BHW,
            weights,
            ignore_index=ignore,
            reduction="sum",
            label_smoothing=self.settings.label_smoothing,
        )
        with torch.no_grad():
            known = y_BHW != ignore
            weight = torch.where(known, weights[torch.where(known, y_BHW, 0)], 0.0).sum()
            right = (scores_BKHW.argmax(1) == y_BHW).sum()
        return Mean(total, weight), Mean(right, known.sum())

    def _augment(
        self, x_BCHW: torch.Tensor, y_BHW: torch.Tensor, draws: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Flips and turns that depend on the sample's draw alone, so that they are the same for any number of ranks."""
        bits = {"none": 0, "flips": 2, "d4": 3}[self.settings.augment]
        square = x_BCHW.shape[-1] == x_BCHW.shape[-2]
        codes = (draws % 2**bits).tolist()
        pairs = [_turn(x, y, code, square) for x, y, code in zip(x_BCHW, y_BHW, codes, strict=True)]
        x, y = torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])
        if self.settings.jitter:
            noise_BN = torch.stack([_noise(int(draw), 1 + self.channels) for draw in draws]).to(x.device)
            offset_BC = self.settings.jitter * (noise_BN[:, :1] + 0.5 * noise_BN[:, 1:])
            x = x + offset_BC[:, :, None, None]
        return x, y


def _turn(x_CHW: torch.Tensor, y_HW: torch.Tensor, code: int, square: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """One of eight symmetries of the square: bit 0 flips columns, bit 1 rows, bit 2 swaps them."""
    axes = [axis for bit, axis in ((1, -1), (2, -2)) if code & bit]
    x, y = x_CHW.flip(axes), y_HW.flip(axes)
    return (x.transpose(-1, -2), y.transpose(-1, -2)) if code & 4 and square else (x, y)


def _noise(draw: int, number: int) -> torch.Tensor:
    return torch.randn(number, generator=torch.Generator().manual_seed(draw))
