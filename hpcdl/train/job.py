"""The protocol between the loop and a job file: what a job must offer, and nothing about any architecture.

A job file defines `NEEDS` (fields of a data set), a frozen dataclass `Settings`, and a class `Job(JobBase)`. Its training step is a
generator: each `yield Update(...)` asks the loop to go one optimizer step of the named networks down that loss. U-Net yields once a
batch, a GAN twice, for its two networks in turn; between two yields the weights have moved.
"""

from __future__ import annotations

import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpcdl.errors import UsageError
from hpcdl.settings import build
from hpcdl.shards.loader import Batch
from hpcdl.shards.manifest import Manifest

Networks = Mapping[str, nn.Module]
Sums = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Mean:
    """A weighted mean that is not divided yet, so that ranks can be added up exactly: scalars `total` and `weight`."""

    total: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True)
class Update:
    """One optimizer step that a training step asks for.

    Attributes:
        networks: names of the networks that move; gradients of the others are not computed.
        loss: what they go down: the loop divides by the weight of all ranks and parts together.
        metrics: further means to report beside the loss.
    """

    networks: tuple[str, ...]
    loss: Mean
    metrics: Mapping[str, Mean] = field(default_factory=dict)


@dataclass(frozen=True)
class DataInfo:
    """What a job may know of its data set.

    Attributes:
        shapes: of one sample, by field.
        mean, std: by field, one number a channel, of the train split.
        fill: by field, the value of a sample's elements without data.
        histogram: train elements of each class.
    """

    shapes: Mapping[str, tuple[int, ...]]
    class_names: tuple[str, ...] = ()
    ignore_index: int = 255
    mean: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    std: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    fill: Mapping[str, float] = field(default_factory=dict)
    histogram: tuple[int, ...] = ()

    @classmethod
    def of(cls, manifest: Manifest) -> DataInfo:
        """From a manifest."""
        statistics = manifest.entries.get("statistics", {})
        return cls(
            shapes={name: tuple(entry["shape"]) for name, entry in manifest.fields.items()},
            class_names=tuple(manifest.class_names),
            ignore_index=manifest.entries.get("ignore_index", 255),
            mean={name: tuple(entry["mean"]) for name, entry in statistics.items() if "mean" in entry},
            std={name: tuple(entry["std"]) for name, entry in statistics.items() if "std" in entry},
            fill={
                name: float(entry["fill"]) for name, entry in manifest.fields.items() if entry.get("fill") is not None
            },
            histogram=tuple(statistics.get("label", {}).get("histogram", ())),
        )


class JobBase(ABC):
    """One architecture family; the loop calls these methods and knows nothing else of it."""

    def __init__(self, settings: Any, data: DataInfo) -> None:
        self.settings, self.data = settings, data

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """Freshly initialised networks by name; each gets an optimizer of its own."""

    @abstractmethod
    def training_step(self, networks: Networks, batch: Batch) -> Iterator[Update]:
        """Compute on one rank's batch, yielding each optimizer step that is wanted; masked samples must weigh nothing."""

    @abstractmethod
    def validation_step(self, networks: Networks, batch: Batch) -> Sums:
        """Sums over one rank's batch, which the loop adds up over batches and ranks."""

    @abstractmethod
    def summarise(self, sums: Sums) -> dict[str, Any]:
        """Metrics of a whole split from the added-up sums: plain numbers, lists and mappings."""

    def predict_step(self, networks: Networks, image_BCHW: torch.Tensor) -> torch.Tensor:
        """Class scores B × K × H × W (before softmax) of images in the shards' units.

        Raises:
            UsageError: this job does not map images to per-pixel classes.
        """
        raise UsageError(f"{type(self).__module__}: this architecture does not predict maps")


def load_job(path: Path, values: Mapping[str, Any], data: DataInfo) -> JobBase:
    """The job of a file, with its settings picked from `values`; the file is loaded by path, nothing imports it.

    Raises:
        UsageError: the file has no Job or Settings, or refuses the settings.
    """
    name = f"hpcdl_job_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    for wanted in ("Settings", "Job"):
        if not hasattr(module, wanted):
            raise UsageError(f"{path}: has no class {wanted}; see docs/add-architecture.md")
    try:
        job: JobBase = module.Job(build(module.Settings, values), data)
    except ValueError as error:
        raise UsageError(f"{path.name}: {error}") from None
    return job
