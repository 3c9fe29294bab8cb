"""Statistics of image fields: sums that each shard keeps as attributes, and what the manifest makes of the train split's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class ImageSums:
    """Sum, sum of squares and number of the values of each channel. Integers of up to 16 bits are added up exactly."""

    def __init__(self, num_channels: int) -> None:
        self.total, self.squares = np.zeros(num_channels), np.zeros(num_channels)
        self.count = np.zeros(num_channels, np.int64)

    def add(self, image_CHW: Array, valid_HW: npt.NDArray[np.bool_] | None = None) -> None:
        """Take an image in: its first axis is the channel. Only pixels that are valid count, all of them without a mask."""
        if valid_HW is None or valid_HW.all():
            values_CN = image_CHW.reshape(len(image_CHW), -1)
        else:
            values_CN = image_CHW[:, valid_HW]
        # As float64 these sums are exact for integers of 16 bits, in whatever order a processor adds them up.
        for channel, values in enumerate(values_CN):
            exact = values.astype(np.float64)
            self.total[channel] += exact.sum()
            self.squares[channel] += np.square(exact, out=exact).sum()
        self.count += values_CN.shape[1]

    def attributes(self, field: str = "image") -> dict[str, Array]:
        """What a shard keeps, by attribute name."""
        return {f"{field}_sum": self.total, f"{field}_squares": self.squares, f"{field}_count": self.count}


def image_statistics(train: Sequence[Mapping[str, Any]], field: str = "image") -> dict[str, list[float]]:
    """The manifest's statistics.<field>: mean, std and count of each channel, from the train shards' attributes."""
    total, squares, count = (
        np.sum([np.atleast_1d(shard[f"{field}_{name}"]) for shard in train], axis=0)
        for name in ("sum", "squares", "count")
    )
    mean = total / np.maximum(count, 1)
    std = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
    return {"mean": mean.tolist(), "std": std.tolist(), "count": count.tolist()}


def histogram(labels: Array, num_classes: int) -> npt.NDArray[np.int64]:
    """How often each class index below `num_classes` occurs; higher ones (such as 255, ignore) are left out."""
    return np.bincount(labels.ravel(), minlength=num_classes)[:num_classes].astype(np.int64)
