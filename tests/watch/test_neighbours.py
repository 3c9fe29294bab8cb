from __future__ import annotations

from typing import Any

import pytest

from hpcdl.pulse import PHASES, WAITING
from hpcdl.watch.neighbours import Progress, Silence, holding_up


def beat(count: int, state: str = "runs", **more: Any) -> dict[str, Any]:
    return {"count": count, "state": state, **more}


def test_a_rank_that_stops_beating_is_lost() -> None:
    silence = Silence(longest_gap_s=4)
    for second in range(0, 20, 2):
        silence.look({1: beat(second), 2: beat(min(second, 6))}, second)
    assert silence.seconds == {1: 0, 2: 12}
    assert silence.lost(12) == []
    assert silence.lost(11) == [2]
    silence.look({1: beat(20), 2: beat(7)}, 20)
    assert silence.lost(0) == []


def test_a_rank_that_has_not_beaten_yet_is_not_lost() -> None:
    silence = Silence(4)
    for second in range(0, 100, 2):
        silence.look({1: None}, second)
    assert silence.lost(10) == []
    silence.look({1: beat(1)}, 100)
    silence.look({1: beat(1)}, 103)
    assert silence.seconds == {1: 3}


def test_a_beat_that_cannot_be_read_counts_as_silence() -> None:
    silence = Silence(4)
    silence.look({1: beat(1)}, 0)
    for second in (2, 4, 6):
        silence.look({1: None}, second)
    assert silence.lost(5) == [1]
    assert silence.beats[1] == beat(1)


def test_a_late_look_is_not_held_against_the_others() -> None:
    silence = Silence(longest_gap_s=4)
    silence.look({1: beat(1)}, 0)
    silence.look({1: beat(1)}, 1000)  # this process was stopped, or its file system hung
    assert silence.seconds == {1: 4}
    silence.look({1: beat(2)}, 1002)
    assert silence.seconds == {1: 0}


@pytest.mark.parametrize(("state", "lost"), [("ended", []), ("runs", [1]), ("stops", [1]), ("lost", [1])])
def test_a_rank_that_said_that_it_ends_is_not_lost(state: str, lost: list[int]) -> None:
    silence = Silence(100)
    silence.look({1: beat(1, state)}, 0)
    silence.look({1: beat(1, state)}, 90)
    assert silence.lost(60) == lost


def test_all_lost_ranks_in_order() -> None:
    silence = Silence(100)
    silence.look({5: beat(1), 2: beat(1), 3: beat(1)}, 0)
    silence.look({5: beat(1), 2: beat(1), 3: beat(2)}, 90)
    assert silence.lost(60) == [2, 5]


def test_progress_of_anybody_counts() -> None:
    progress = Progress(100)
    assert progress.look([], 5) == 0
    assert progress.look([beat(1, progress=0), beat(1, progress=0)], 10) == 0
    assert progress.look([beat(2, progress=0), beat(2, progress=0)], 18) == 8
    assert progress.look([beat(3, progress=0), beat(3, progress=1)], 20) == 0
    assert progress.look([beat(3, progress=1), beat(3, progress=1)], 30) == 10
    assert progress.look([beat(3, progress=1)], 32) == 12


def test_a_job_that_was_suspended_has_not_hung() -> None:
    progress = Progress(4)
    progress.look([beat(1, progress=7)], 0)
    assert progress.look([beat(2, progress=7)], 2000) == 4


def test_who_holds_up_the_others() -> None:
    busy = [phase for phase in PHASES if phase != WAITING]
    beats = {3: beat(1, phase=busy[0]), 0: beat(1, phase=WAITING), 1: beat(1, phase=busy[1])}
    assert holding_up(beats, 5) == [2, 4]  # never came to life
    assert holding_up({**beats, 2: beat(1, phase=WAITING)}, 4) == [1, 3]
    assert holding_up({1: beat(1, phase=WAITING), 0: beat(1, phase=WAITING)}, 2) == []
