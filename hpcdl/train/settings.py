"""The settings that the training loop takes for every architecture; `--set optimizer.lr=3e-4` reaches `OptimizerSettings.lr`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from hpcdl.resources import Range


@dataclass(frozen=True)
class OptimizerSettings:
    """How weights move."""

    name: Literal["adamw", "sgd"] = "adamw"
    """adamw (Loshchilov & Hutter 2019) or sgd with Nesterov momentum."""
    lr: Annotated[float, Range(0)] = 1e-3
    """Peak learning rate, for the global batch whatever the number of ranks (see scale_lr)."""
    weight_decay: Annotated[float, Range(0)] = 0.01
    """Decoupled for adamw, L2 for sgd; not applied to biases and normalisation weights."""
    momentum: Annotated[float, Range(0, 1)] = 0.9
    """Of sgd; the first beta of adamw."""
    clip_norm: Annotated[float, Range(0)] = 0.0
    """Largest norm of all gradients together; 0 does not clip."""


@dataclass(frozen=True)
class ScheduleSettings:
    """How the learning rate moves over the run."""

    name: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: half a cosine down to `final`, or constant."""
    warmup: Annotated[float, Range(0, 1)] = 0.05
    """Part of all steps over which the rate rises linearly from nothing."""
    final: Annotated[float, Range(0, 1)] = 0.01
    """What part of the peak rate is left at the end of the cosine."""


@dataclass(frozen=True)
class BestSettings:
    """Which validation is the best, and when none better is expected."""

    metric: str = "loss"
    """Number of the validation that decides; its checkpoint is kept as BEST."""
    mode: Literal["min", "max"] = "min"
    """Whether a smaller or a larger one is better."""
    min_delta: Annotated[float, Range(0)] = 0.0
    """By how much it must be better."""
    patience: Annotated[int, Range(0)] = 0
    """End the training after this many validations without a better one; 0 never does."""


@dataclass(frozen=True)
class CheckpointSettings:
    """When the state is saved, how, and what stays. It is always saved at the end and when the training is asked to stop."""

    epochs: Annotated[int, Range(0)] = 1
    """Epochs between two checkpoints; 0 does not count epochs."""
    steps: Annotated[int, Range(0)] = 0
    """Steps between two checkpoints; 0 does not count steps."""
    minutes: Annotated[float, Range(0)] = 15.0
    """Minutes after which a checkpoint is due in any case, so that a long epoch is never lost; 0 does not count them."""
    keep: Annotated[int, Range(1)] = 2
    """Newest checkpoints that stay, besides the best one."""
    keep_every: Annotated[int, Range(0)] = 0
    """Checkpoints at multiples of this many steps stay for ever; 0 keeps none of them."""
    asynchronous: bool = True
    """Training goes on while a checkpoint is written; it only waits for the copy to host memory."""
    on_error: Literal["stop", "go-on"] = "stop"
    """When a checkpoint cannot be written (disk full): end the training as failed, or warn and go on without."""


@dataclass(frozen=True)
class TrainSettings:
    """What the loop needs to know."""

    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    best: BestSettings = field(default_factory=BestSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    epochs: Annotated[int, Range(1)] = 10
    """Passes over the train split."""
    max_steps: Annotated[int, Range(0)] = 0
    """End after this many steps even if epochs are left; 0 does not."""
    batch_size: Annotated[int, Range(1)] = 16
    """Samples of a step over all ranks together, so that a run is the same for any number of ranks."""
    accumulate: Annotated[int, Range(1)] = 1
    """Parts in which each rank computes its share of a batch, one after the other, to save memory."""
    seed: Annotated[int, Range(0)] = 0
    """Of initial weights, sample order, augmentation and dropout."""
    scale_lr: bool = False
    """Multiply the learning rate by the number of ranks (Goyal et al. 2017). Off: the batch is global already."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Autocast: bf16 on GPUs that have it (auto), none, always bf16, or fp16 with a loss scale that adapts (V100, RTX)."""
    compression: Literal["none", "fp16"] = "none"
    """How gradients travel between ranks (Horovod)."""
    ema: Annotated[float, Range(0, 1)] = 0.0
    """Decay of an exponential moving average of the weights, used for validation and prediction; 0 keeps none."""
    stage: bool = False
    """Copy the data set to each node's own disk before training, and read it there (as --stage does)."""
    log_every: Annotated[int, Range(1)] = 10
    """Steps between two lines of metrics."""
    val_every: Annotated[int, Range(0)] = 1
    """Epochs between two validations; 0 validates at the end only."""
    on_nan: Literal["stop", "skip"] = "stop"
    """When a loss or gradient is not finite: end before the weights move, or leave the step out and count it."""
