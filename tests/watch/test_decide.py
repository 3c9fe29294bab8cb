from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hpcdl.attempts import CONTINUE_ME
from hpcdl.watch.decide import IDLE_ATTEMPTS, NODE_FAULTS, Decision, Ended, bad_nodes, decide

WALLTIME = Ended(0, None, True, "asked to stop", "walltime", 10, 20)
LOST = {"kind": "node-lost", "rank": 3, "host": "n3", "step": 20, "line": "no sign of life"}
ERROR = {"kind": "error", "rank": 1, "host": "n1", "step": 20, "line": "ArithmeticError"}
ME = "77"


def event(kind: str, job_id: str = ME, **details: Any) -> dict[str, Any]:
    return {"event": kind, "job_id": job_id, "time": 1.0, **details}


def closed(before: int, after: int, failure: dict[str, Any] | None = None, job_id: str = ME) -> dict[str, Any]:
    return event("closed", job_id, from_step=before, to_step=after, failure=failure)


def asked(ended: Ended, events: list[dict[str, Any]] | None = None, max_requeues: int = 10) -> Decision:
    return decide(ended, ME, events or [], max_requeues, "zion")


def test_done() -> None:
    assert asked(replace(WALLTIME, why="done")) == Decision(0, False, "done")
    odd = asked(replace(WALLTIME, why="done", launcher_code=134, failure=LOST))
    assert (odd.code, odd.requeue) == (0, False)
    assert "afterwards the launcher ended with code 134" in odd.why


@pytest.mark.parametrize("kind", ["error", "agreed", "killed", "crash", "communication"])
@pytest.mark.parametrize("stop", ["", "walltime", "cancelled"])
def test_an_error_is_not_tried_again(kind: str, stop: str) -> None:
    decision = asked(replace(WALLTIME, launcher_code=1, failure={**ERROR, "kind": kind}, why="", stop=stop))
    assert (decision.code, decision.requeue, decision.why) == (1, False, "failed")
    assert decision.advice == "`hpcdl resume zion` goes on from step 20"


def test_a_cancelled_job_can_go_on_and_does_not_by_itself() -> None:
    decision = asked(replace(WALLTIME, stop="cancelled"))
    assert (decision.code, decision.requeue) == (CONTINUE_ME, False)
    assert "`hpcdl resume zion` goes on from step 20" in decision.advice


def test_ranks_that_were_asked_behind_the_jobs_back() -> None:
    decision = asked(replace(WALLTIME, stop=""))
    assert (decision.code, decision.requeue, decision.why) == (CONTINUE_ME, False, "was asked to stop")


def test_the_end_of_the_walltime_goes_on() -> None:
    decision = asked(WALLTIME)
    assert decision == Decision(CONTINUE_ME, True, "stopped before its walltime ended; goes on from step 20")


@pytest.mark.parametrize(("kind", "why"), [("node-lost", "lost a node"), ("stalled", "hung")])
def test_a_nodes_fault_goes_on_with_code_1(kind: str, why: str) -> None:
    ended = Ended(137, {**LOST, "kind": kind}, True, "", "", 10, 20)
    assert asked(ended) == Decision(1, True, f"{why}; goes on from step 20")
    assert asked(replace(ended, stop="walltime")).code == CONTINUE_ME
    assert not asked(replace(ended, stop="cancelled")).requeue


def test_a_launcher_that_fails_without_a_word() -> None:
    first = Ended(3, None, False, "", "", 0, 0)
    decision = asked(first)
    assert (decision.code, decision.requeue) == (3, False)
    assert decision.why == "ended with code 3, and no rank could say why"
    assert asked(replace(first, launcher_code=0)).code == 1


def test_a_launcher_that_had_worked_before() -> None:
    ended = Ended(3, None, False, "", "", 20, 20)
    before = [event("started"), closed(0, 20)]
    assert asked(ended, before).why == "could not be started on these nodes; goes on from step 20"
    assert asked(ended, before).requeue
    other_job = [event("started", "76"), closed(0, 20, job_id="76")]
    assert not asked(ended, other_job).requeue
    assert not asked(replace(ended, started=True), before).requeue


@pytest.mark.parametrize(("used", "requeue"), [(0, True), (1, True), (2, False), (3, False)])
def test_it_is_started_again_only_so_often(used: int, requeue: bool) -> None:
    events = [event("requeued") for _ in range(used)] + [event("requeued", "76") for _ in range(9)]
    decision = asked(WALLTIME, events, max_requeues=2)
    assert (decision.code, decision.requeue) == (CONTINUE_ME, requeue)
    if not requeue:
        assert f"it was started again {used} times already (--max-requeues)" in decision.why
        assert "`hpcdl resume zion` goes on from step 20" in decision.advice


def test_a_job_that_may_not_requeue() -> None:
    decision = asked(WALLTIME, max_requeues=0)
    assert (decision.code, decision.requeue) == (CONTINUE_ME, False)
    assert decision.why == "stopped before its walltime ended; it may not requeue"


def test_attempts_that_save_nothing_end() -> None:
    idle = replace(WALLTIME, from_step=20)
    events = [event("began", from_step=0), closed(0, 20)]
    for _ in range(IDLE_ATTEMPTS - 1):
        events.append(event("began", from_step=20))  # with or without a word of its end
        assert asked(idle, events).requeue
    events.append(event("began", from_step=20))
    decision = asked(idle, events)
    assert (decision.code, decision.requeue) == (CONTINUE_ME, False)
    assert f"{IDLE_ATTEMPTS} attempts in a row saved nothing new" in decision.why
    assert "ask for a longer --time" in decision.advice
    assert asked(replace(idle, to_step=21), events).requeue  # this one did save
    assert asked(idle, [event("began", "76", from_step=20)] * 5).requeue  # a new job begins to count anew


def test_attempts_that_saved_and_lost_it_count_as_idle() -> None:
    # A damaged checkpoint was set aside: the newest one is older than before.
    began = [event("began", from_step=20)] * IDLE_ATTEMPTS
    assert not asked(Ended(1, LOST, True, "", "", 20, 10), began).requeue


@pytest.mark.parametrize("kind", NODE_FAULTS)
def test_nodes_that_failed_twice(kind: str) -> None:
    fault = {**LOST, "kind": kind}
    assert bad_nodes([closed(0, 5, fault)]) == []
    assert bad_nodes([closed(0, 5, fault), closed(5, 9, {**fault, "host": "n4"})]) == []
    twice = [closed(0, 5, fault), closed(5, 9, fault, job_id="76"), closed(9, 9), event("requeued")]
    assert bad_nodes(twice) == ["n3"]
    assert bad_nodes([closed(0, 5, {**ERROR, "host": "n3"})] * 4) == []


def test_the_user_is_told_of_a_node_that_failed_twice() -> None:
    events = [event("requeued"), closed(0, 10, LOST)]
    decision = asked(Ended(1, LOST, True, "", "", 10, 20), events)
    assert decision.requeue
    assert "`hpcdl resume zion --exclude n3` keeps away from it" in decision.advice
    decision = asked(Ended(1, LOST, True, "", "", 10, 20), events, max_requeues=1)
    assert decision.advice.startswith("`hpcdl resume zion` goes on from step 20; n3 failed twice")
