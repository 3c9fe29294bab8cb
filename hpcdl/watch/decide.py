"""What becomes of a job when an attempt has ended: a pure function of what is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpcdl.attempts import CONTINUE_ME

IDLE_ATTEMPTS = 3
"""Attempts in a row without a new checkpoint after which a job is not started again."""

NODE_FAULTS = ("node-lost", "stalled")
"""Kinds of failure that a node, rather than the code, is to blame for."""


@dataclass(frozen=True)
class Ended:
    """How an attempt ended.

    Attributes:
        launcher_code: exit code of srun, mpirun, ….
        failure: the first failure that anybody found.
        started: whether the training came to its first step's door.
        why: what rank 0 said at its end: "done", "asked to stop", or nothing.
        stop: why the ranks were asked to stop: "walltime", "cancelled", or not at all.
        from_step, to_step: newest checkpoint before and after.
    """

    launcher_code: int
    failure: Mapping[str, Any] | None
    started: bool
    why: str
    stop: str
    from_step: int
    to_step: int


@dataclass(frozen=True)
class Decision:
    """The job's exit code, whether it goes back to the queue, and what to tell the user."""

    code: int
    requeue: bool
    why: str
    advice: str = ""


def decide(ended: Ended, job_id: str, events: Sequence[Mapping[str, Any]], max_requeues: int, name: str) -> Decision:
    """What to do now.

    Args:
        events: of the run, without this attempt's end.
        max_requeues: how often this job may go back to the queue; 0 is never.
        name: the run's, for the advice.
    """
    # What rank 0 says at its end is said after the last checkpoint was committed: a crash while the ranks part costs nothing.
    odd = f"; afterwards the launcher ended with code {ended.launcher_code}" if ended.launcher_code else ""
    if ended.why == "done":
        return Decision(0, False, "done" + odd)
    if ended.why:
        ended = replace(ended, failure=None)
    go_on = f"`hpcdl resume {name}` goes on from step {ended.to_step}"
    if ended.failure is not None and ended.failure["kind"] not in NODE_FAULTS:
        return Decision(1, False, "failed", go_on)
    if ended.stop == "cancelled":
        return Decision(CONTINUE_ME, False, "was cancelled", go_on)
    if ended.failure is not None:
        why = "lost a node" if ended.failure["kind"] == "node-lost" else "hung"
    elif ended.stop == "walltime":
        why = "stopped before its walltime ended" + odd
    elif ended.why == "asked to stop":
        advice = f"a job that was preempted comes back by itself; after a cancellation {go_on}"
        return Decision(CONTINUE_ME, False, "was asked to stop", advice)
    elif not ended.started and any(event["event"] == "started" and event["job_id"] == job_id for event in events):
        # It did start before, with the same launcher: a node that is about to be found dead, more likely than anything else.
        why = "could not be started on these nodes"
    else:
        code = ended.launcher_code or 1
        return Decision(code, False, f"ended with code {code}, and no rank could say why", go_on)
    code = CONTINUE_ME if ended.stop == "walltime" else 1
    advice = "; ".join([go_on, *_bad_nodes(ended, events, name)])
    mine = [event["event"] for event in events if event["job_id"] == job_id]
    used = mine.count("requeued") - mine.count("refused")
    if used >= max_requeues:
        limit = f"it was started again {used} times already (--max-requeues)" if max_requeues else "it may not requeue"
        return Decision(code, False, f"{why}; {limit}", advice)
    if _idle(ended, job_id, events) >= IDLE_ATTEMPTS:
        why += f"; {IDLE_ATTEMPTS} attempts in a row saved nothing new"
        return Decision(code, False, why, f"ask for a longer --time, or look at the log; {advice}")
    return Decision(code, True, f"{why}; goes on from step {ended.to_step}", "; ".join(_bad_nodes(ended, events, name)))


def bad_nodes(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Nodes that failed in two attempts or more."""
    blamed = Counter(
        event["failure"]["host"]
        for event in events
        if event["event"] == "closed" and (event.get("failure") or {}).get("kind") in NODE_FAULTS
    )
    return sorted(host for host, times in blamed.items() if times >= 2 and host not in ("", "?"))


def _bad_nodes(ended: Ended, events: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    nodes = bad_nodes([*events, {"event": "closed", "failure": ended.failure}])
    if not nodes:
        return []
    listed = ",".join(nodes)
    return [
        f"{listed} failed twice: `hpcdl cancel {name}` and `hpcdl resume {name} --exclude {listed}` keeps away from it"
    ]


def _idle(ended: Ended, job_id: str, events: Sequence[Mapping[str, Any]]) -> int:
    """Attempts of this job in a row, this one included, that saved nothing new; also those that could not tell their end."""
    number = 0
    for event in reversed(events):
        if event["event"] == "began" and event["job_id"] == job_id:
            if event["from_step"] < ended.to_step:
                break
            number += 1
    return number
