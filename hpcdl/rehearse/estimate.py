"""From what a rehearsal measured to what the whole run will take. Plain arithmetic; imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hpcdl.resources import time_text

MARGIN = 1.25
"""What to ask for beyond the estimate: file systems and neighbours have slow days."""

ROUND_MIN = 5


@dataclass(frozen=True)
class Measured:
    """What a rehearsal measured; seconds.

    Attributes:
        exact: whether the interrupted training came to the same weights, bit for bit.
        start_s: from the launcher's start to the end of the first step.
        resume_s: the same, going on from a checkpoint.
        step_s: one step, after the first ones.
        stall_s: for how long a checkpoint holds the training up.
        write_s: for how long it is written beside the training.
        validation_s: one validation; estimated from a step where none was due.
    """

    exact: bool
    start_s: float
    resume_s: float
    step_s: float
    stall_s: float
    write_s: float
    checkpoint_mb: float
    validation_s: float
    validation_measured: bool
    num_steps: int
    batches_per_epoch: int


@dataclass(frozen=True)
class Forecast:
    """What the whole run will take.

    Attributes:
        walltime: to ask for in one job, or the partition's longest; the run then goes back to the queue by itself.
        num_jobs: how many such walltimes it needs.
    """

    total_s: float
    node_hours: float
    walltime: str
    num_jobs: int
    checkpoint_share: float


def forecast(measured: Measured, settings: Mapping[str, Any], nodes: int, longest_min: float = math.inf) -> Forecast:
    """The whole run, from its settings by dotted name.

    Args:
        longest_min: the longest walltime that the partition allows.
    """
    epochs = measured.num_steps / measured.batches_per_epoch
    stepping = measured.num_steps * measured.step_s
    val_every = settings["val_every"]
    validations = max(1, math.floor(epochs / val_every)) if val_every else 1
    by_epoch = epochs / settings["checkpoint.epochs"] if settings["checkpoint.epochs"] else 0
    by_step = measured.num_steps / settings["checkpoint.steps"] if settings["checkpoint.steps"] else 0
    by_clock = stepping / (60 * settings["checkpoint.minutes"]) if settings["checkpoint.minutes"] else 0
    checkpoints = 1 + math.floor(max(by_epoch, by_clock) + by_step)
    saving = checkpoints * measured.stall_s + measured.write_s
    total = measured.start_s + stepping + validations * measured.validation_s + saving
    wanted_min = math.ceil((total * MARGIN / 60 + 1) / ROUND_MIN) * ROUND_MIN
    jobs = 1
    if wanted_min > longest_min:
        # Each job loses its start and the time that a stop takes.
        lost = measured.resume_s + 3 * (measured.stall_s + measured.write_s) + 60
        jobs = math.ceil(total * MARGIN / max(60.0, longest_min * 60 - lost))
        total += (jobs - 1) * lost
    walltime = time_text(min(wanted_min, longest_min))
    return Forecast(total, nodes * total / 3600, walltime, jobs, saving / total)


def rows(measured: Measured, wanted: Forecast, nodes: int, tasks: int) -> list[tuple[str, str]]:
    """Both as pairs of what and how much, for a table."""
    told = "" if measured.validation_measured else " (none was due: a third of the steps that it is worth)"
    jobs = "" if wanted.num_jobs == 1 else f", {wanted.num_jobs} times: it goes back to the queue by itself"
    verdict = "the same weights, bit for bit" if measured.exact else "OTHER WEIGHTS: this run does not resume exactly"
    return [
        ("interrupted and resumed", verdict),
        ("start to first step", f"{measured.start_s:.1f} s"),
        ("resume to first step", f"{measured.resume_s:.1f} s"),
        ("a step", f"{measured.step_s:.4g} s on {nodes} nodes, {tasks} ranks"),
        ("a validation", f"{measured.validation_s:.1f} s{told}"),
        (
            "a checkpoint",
            f"{measured.checkpoint_mb:.1f} MB, stalls {measured.stall_s:.2f} s, written in {measured.write_s:.2f} s",
        ),
        ("the whole run", f"{measured.num_steps:,} steps in {time_text(wanted.total_s / 60)}"),
        ("node-hours", f"{wanted.node_hours:.3g}"),
        ("ask for", f"--nodes {nodes} --time {wanted.walltime}{jobs}"),
    ]


def document(measured: Measured, wanted: Forecast) -> dict[str, Any]:
    """Both as one mapping, for rehearsal.json."""
    return {"measured": asdict(measured), "forecast": asdict(wanted)}
