from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from hpcdl.attempts import BEAT_WIDTH, AttemptDir, attempt_of, create_whole
from hpcdl.rundir import RunDir

# Processes that only touch files may be forked whatever threads other tests have left behind.
pytestmark = pytest.mark.filterwarnings("ignore:.*is multi-threaded:DeprecationWarning")


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptDir:
    made = attempt_of(RunDir(tmp_path / "run"), "77-0")
    made.make()
    return made


def test_names(attempt: AttemptDir) -> None:
    assert attempt.name == "77-0"
    assert attempt.beat_file(3).name == "beat-00003"
    assert attempt.beat_file("main").name == "beat-main"
    assert attempt.stderr_file(12).name == "stderr-00012"


def test_an_attempt_of_the_same_name_is_emptied(attempt: AttemptDir) -> None:
    attempt.say("stop", why="walltime")
    attempt.claim({"rank": 1})
    attempt.beat(0, {"count": 1})
    attempt.make()
    assert [path.name for path in attempt.path.iterdir()] == ["control"]
    assert (attempt.said(), attempt.failure(), attempt.read_beat(0)) == ({}, None, None)


def test_the_first_of_each_kind_counts(attempt: AttemptDir) -> None:
    assert attempt.said() == {}
    attempt.say("stop", why="walltime")
    attempt.say("stop", why="cancelled")
    with attempt.control.open("a") as file:
        file.write('{"what": "fail')  # a writer that was cut off
    assert attempt.said() == {"stop": {"what": "stop", "why": "walltime"}}


def test_before_the_folder_is_there(tmp_path: Path) -> None:
    attempt = attempt_of(RunDir(tmp_path), "1-0")
    assert (attempt.said(), attempt.failure(), attempt.read_beat("main"), attempt.beats()) == ({}, None, None, "")
    attempt.beat(0, {"count": 1})  # no error: a beat more or less


def _claim(attempt: AttemptDir, rank: int, barrier: Any, won: Any) -> None:
    barrier.wait()
    if attempt.claim({"rank": rank, "text": "x" * 10_000}):
        won.put(rank)


def test_of_many_that_claim_at_once_one_wins(attempt: AttemptDir) -> None:
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        attempt.make()
        barrier, won = context.Barrier(12), context.SimpleQueue()
        processes = [context.Process(target=_claim, args=(attempt, rank, barrier, won)) for rank in range(12)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(30)
            assert process.exitcode == 0
        winner = won.get()
        assert won.empty()
        failure = attempt.failure()
        assert failure is not None
        assert (failure["rank"], len(failure["text"])) == (winner, 10_000)
        assert attempt.said() == {"failure": {"what": "failure"}}
        assert sorted(path.name for path in attempt.path.iterdir()) == ["control", "failure.json"]


def test_without_hard_links_one_wins_as_well(attempt: AttemptDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert attempt.claim({"rank": 1})
    assert not attempt.claim({"rank": 2})
    assert (attempt.failure() or {})["rank"] == 1
    assert sorted(path.name for path in attempt.path.iterdir()) == ["control", "failure.json"]


def test_an_answer_that_got_lost_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def twice(source: Path, target: Path) -> None:
        real(source, target)
        real(source, target)  # an NFS client that heard nothing asks once more

    monkeypatch.setattr(os, "link", twice)
    assert create_whole(tmp_path / "x", b"mine")
    assert not create_whole(tmp_path / "x", b"theirs")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]


def test_a_full_disk_is_told(attempt: AttemptDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert attempt.claim({"rank": 1})
    assert attempt.failure() is None


def test_a_failure_holds_what_a_message_can_hold(attempt: AttemptDir) -> None:
    assert attempt.claim({"line": "ünï 中 😀 \n", "rank": 0})
    failure = attempt.failure()
    assert failure is not None
    assert failure["line"] == "ünï 中 😀 \n"
    assert failure["time"] > 1e9


def _beat(attempt: AttemptDir, ready: Any) -> None:
    count = 0
    ready.set()
    while True:
        count += 1
        # Lengths that vary: a reader must never see the end of a longer one behind a shorter one.
        attempt.beat(3, {"count": count, "phase": "x" * (count * 7 % 200)})


def test_beats_are_read_while_they_are_rewritten(attempt: AttemptDir) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    writer = context.Process(target=_beat, args=(attempt, ready), daemon=True)
    writer.start()
    assert ready.wait(30)
    read = [attempt.read_beat(3) for _ in range(3000)]
    counts = [beat["count"] for beat in read if beat is not None]
    while not counts:  # the writer has hardly begun
        counts = [beat["count"]] if (beat := attempt.read_beat(3)) else []
    writer.kill()
    writer.join()
    assert counts == sorted(counts)
    assert all(len(beat["phase"]) == beat["count"] * 7 % 200 for beat in read if beat is not None)
    assert attempt.beat_file(3).stat().st_size == BEAT_WIDTH


def test_beats_as_one_text(attempt: AttemptDir) -> None:
    attempt.beat(0, {"count": 1})
    attempt.beat("main", {"count": 1})
    before = attempt.beats()
    assert attempt.beats() == before
    assert [json.loads(line)["count"] for line in before.split("\n") if line] == [1, 1]
    attempt.beat("main", {"count": 2})
    assert attempt.beats() != before
