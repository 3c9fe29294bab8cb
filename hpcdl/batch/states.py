"""The one table of job states: Slurm's names, whether a job in that state goes on, and what it means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class State:
    """A job state; `active` jobs may still change, `ok` is True only for success."""

    active: bool
    ok: bool
    meaning: str


STATES = {
    "PENDING": State(True, False, "waits in the queue"),
    "CONFIGURING": State(True, False, "nodes are being made ready"),
    "RUNNING": State(True, False, "runs"),
    "SUSPENDED": State(True, False, "suspended; keeps its nodes"),
    "STOPPED": State(True, False, "stopped by a signal; keeps its nodes"),
    "SIGNALING": State(True, False, "is being signalled"),
    "STAGE_OUT": State(True, False, "files are being staged out"),
    "COMPLETING": State(True, False, "is ending"),
    "REQUEUED": State(True, False, "goes back to the queue"),
    "REQUEUE_HOLD": State(True, False, "back in the queue, held"),
    "REQUEUE_FED": State(True, False, "back in the queue of a federation"),
    "SPECIAL_EXIT": State(True, False, "back in the queue, held after a special exit code"),
    "RESV_DEL_HOLD": State(True, False, "held: its reservation was deleted"),
    "RESIZING": State(True, False, "is changing its size"),
    "UNKNOWN": State(True, False, "not yet known to the scheduler's accounting"),
    "COMPLETED": State(False, True, "done"),
    "FAILED": State(False, False, "ended with a non-zero exit code"),
    "TIMEOUT": State(False, False, "reached its time limit"),
    "CANCELLED": State(False, False, "was cancelled"),
    "PREEMPTED": State(False, False, "gave way to another job"),
    "NODE_FAIL": State(False, False, "lost a node"),
    "OUT_OF_MEMORY": State(False, False, "ran out of memory"),
    "DEADLINE": State(False, False, "missed its deadline"),
    "BOOT_FAIL": State(False, False, "a node failed to boot"),
    "LAUNCH_FAILED": State(False, False, "could not be launched"),
    "RECONFIG_FAIL": State(False, False, "a node failed to reconfigure"),
    "FORGOTTEN": State(False, False, "is no longer known to Slurm: accounting is off, or the record was purged"),
    "REVOKED": State(False, False, "runs on another cluster of the federation"),
}


def lookup(name: str) -> State:
    """The state of a name as Slurm writes it ("CANCELLED by 1000", "COMPLETED+"); an unlisted one counts as going on."""
    return STATES.get(base_name(name), State(True, False, f"Slurm says {name!r}"))


def base_name(name: str) -> str:
    """The state's name without 'by …' and '+'."""
    return name.split()[0].rstrip("+") if name.strip() else "UNKNOWN"


@dataclass(frozen=True)
class JobInfo:
    """What a scheduler says of one job; `reason` is why it is pending, or what it ended of."""

    job_id: str
    state: str
    exit_code: int | None = None
    reason: str = ""
    nodes: str = ""
    num_nodes: int | None = None
    partition: str = ""
    account: str = ""
    elapsed: str = ""
    time_limit: str = ""
    start: str = ""
    end: str = ""
    source: str = ""

    @property
    def active(self) -> bool:
        """Whether the job may still change."""
        return lookup(self.state).active

    @property
    def ok(self) -> bool:
        """Whether the job ended well."""
        return lookup(self.state).ok

    def process_code(self) -> int:
        """The exit code for a command that waited for this job: 0, the job's own, 124 for its time limit, else 1."""
        if self.ok:
            return 0
        return 124 if base_name(self.state) == "TIMEOUT" else self.exit_code or 1

    def to_json(self) -> dict[str, Any]:
        """The fields that are known, as plain values."""
        known = {key: value for key, value in vars(self).items() if value not in ("", None)}
        return known | {"active": self.active, "meaning": lookup(self.state).meaning}


@dataclass(frozen=True)
class Submission:
    """A job that a scheduler took, with what it needs to find it again."""

    job_id: str
    details: dict[str, Any] = field(default_factory=dict)
