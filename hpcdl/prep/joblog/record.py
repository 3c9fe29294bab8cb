"""One job as a log tells it, whatever the log's format: names, what was asked for at submission, what was known at the end."""

from __future__ import annotations

import math
from typing import NamedTuple

CATEGORIES = ("user", "group", "account", "partition", "qos", "jobname")
"""The names of a job. In SWF the queue is the `qos` and the executable the `jobname`."""

REQUEST = ("cpus", "nodes", "memory_mb", "timelimit_s", "gpus", "array", "dependency")
"""Known at submission. Memory is that of the whole job."""

ENDED = ("elapsed_s", "wait_s", "exit_code", "exit_signal", "cpu_time_s", "max_rss_mb", "alloc_cpus", "alloc_nodes")
"""Known at the end only."""

CPU_TIME, MAX_RSS = ENDED.index("cpu_time_s"), ENDED.index("max_rss_mb")

STATES = (
    "COMPLETED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "BOOT_FAIL", "DEADLINE", "CANCELLED", "PREEMPTED",
    "REVOKED", "PENDING", "RUNNING", "SUSPENDED", "REQUEUED", "RESIZING", "COMPLETING", "CONFIGURING", "STOPPED",
    "SIGNALING", "STAGE_OUT", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT", "LAUNCH_FAILED",
    "RECONFIG_FAIL", "POWER_UP_NODE", "UPDATE_DB", "UNKNOWN",
)  # fmt: skip
"""Slurm's job states, see man sacct; those of an SWF file are COMPLETED, FAILED, CANCELLED and UNKNOWN."""

FAILED = ("FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "BOOT_FAIL", "DEADLINE", "LAUNCH_FAILED", "RECONFIG_FAIL")
FINAL = ("COMPLETED", *FAILED, "CANCELLED", "PREEMPTED", "REVOKED")

NAN = math.nan

LAST_SECOND = 253402300799
"""The end of the year 9999; no time is later."""


class Job(NamedTuple):
    """One line of a log; times in seconds since 1970, NaN for all that is unknown.

    Attributes:
        key: names the job in its cluster; the same for its steps and its requeued runs.
        is_step: a part of a job, such as 123.batch: only `key` and `ended` mean something.
        submit, end: clock times; `zone_s` is to be added for the local clock.
        state: index into STATES.
        owner: whose history the job belongs to, empty when unknown.
        names: of CATEGORIES, empty when unknown.
        request: of REQUEST.
        ended: of ENDED.
    """

    key: str
    is_step: bool
    submit: float
    end: float
    zone_s: float
    state: int
    owner: str
    names: tuple[str, ...]
    request: tuple[float, ...]
    ended: tuple[float, ...]
