"""What a job asks of the scheduler, named as sbatch names it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """Bounds of a number, for `Annotated[int, Range(1, 8)]`; both ends are allowed."""

    low: float
    high: float = float("inf")


@dataclass(frozen=True)
class Resources:
    """One request: nodes × tasks × CPUs × GPUs, time, and the site's names. Each field is a flag of `hpcdl submit`."""

    nodes: Annotated[int, Range(1)] = 1
    """Number of nodes."""
    ntasks_per_node: Annotated[int, Range(1)] = 1
    """Ranks a node: one a GPU, or one for each few CPUs."""
    cpus_per_task: Annotated[int, Range(1)] = 1
    """CPUs of each rank."""
    gpus_per_node: Annotated[int, Range(0)] = 0
    """GPUs of each node."""
    mem: str | None = None
    """Memory of each node, such as 64G."""
    time: str = "01:00:00"
    """Walltime: minutes, HH:MM:SS or D-HH:MM:SS."""
    partition: str | None = None
    """Partition (queue) to run in."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    reservation: str | None = None
    """Reservation to run in."""
    constraint: str | None = None
    """Node features to ask for."""
    nodelist: str | None = None
    """Nodes that must be among the job's."""
    exclude: str | None = None
    """Nodes to keep away from."""
    dependency: str | None = None
    """Start only after other jobs, such as afterok:123."""
    mail_type: str | None = None
    """When to send mail: BEGIN, END, FAIL, ALL."""
    mail_user: str | None = None
    """Whom to send it to."""
    signal: str | None = None
    """Lead time before the end of the walltime at which a training saves its state and stops, such as USR1@120 for 120 s.
    Without it hpcdl is warned early and stops as late as its checkpoints, as measured, allow."""
    requeue: bool = True
    """Whether the job may go back to the queue: after a preemption, a node failure, or when a training needs more walltime."""
    max_requeues: Annotated[int, Range(0)] = 10
    """How often a training goes back to the queue by itself to go on from its checkpoint."""

    @property
    def num_tasks(self) -> int:
        """Ranks in all."""
        return self.nodes * self.ntasks_per_node

    @property
    def time_min(self) -> float:
        """Walltime in minutes."""
        return parse_time(self.time)

    @property
    def lead_s(self) -> int:
        """Seconds before the end of the walltime at which a training is warned: what `signal` says, else a part of the time."""
        if self.signal:
            return int(self.signal.partition("@")[2])
        return round(min(600, max(30, 9 * self.time_min), 30 * self.time_min))

    @property
    def memory_mb(self) -> int:
        """Memory a node in MB, 0 when not asked for."""
        return parse_memory(self.mem) if self.mem else 0

    def validate(self) -> None:
        """Raises ValueError for a time, memory or text that no sbatch would take."""
        if self.time_min <= 0:
            raise ValueError(f"time {self.time!r} must be more than nothing")
        parse_memory(self.mem or "0")
        if self.signal is not None and not re.fullmatch(r"USR1@\d{1,5}", self.signal):
            raise ValueError(f"signal {self.signal!r} is not of the form USR1@120 (seconds before the walltime ends)")
        if self.lead_s >= 60 * self.time_min:
            raise ValueError(
                f"signal {self.signal!r} comes before a job of time {self.time} begins; give fewer seconds"
            )
        for name, value in vars(self).items():
            if isinstance(value, str) and re.search(r"[\x00-\x1f\x7f]", value):
                raise ValueError(f"{name} {value!r} holds a control character")


def parse_time(text: str) -> float:
    """Minutes of a Slurm time: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not match:
        raise ValueError(f"time {text!r} is not one of minutes, HH:MM:SS, D-HH:MM:SS")
    days, *rest = match.groups()
    first, second, third = (int(part) if part else None for part in rest)
    assert first is not None
    if days is not None:
        return int(days) * 1440 + first * 60 + (second or 0) + (third or 0) / 60
    if third is not None:
        return first * 60 + (second or 0) + third / 60
    return first + (second or 0) / 60


def time_text(minutes: float) -> str:
    """Minutes as Slurm writes them: [D-]HH:MM:SS."""
    seconds = round(minutes * 60)
    days, seconds = divmod(seconds, 86400)
    clock = f"{seconds // 3600:02d}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"
    return f"{days}-{clock}" if days else clock


def parse_memory(text: str) -> int:
    """MB of an sbatch memory size such as 4000, 64G or 1T.

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"mem {text!r} is not a size such as 64G or 4000M")
    factor = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[match[2].upper()]
    return int(int(match[1]) * factor)
