from __future__ import annotations

import errno
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcdl import lock
from hpcdl.attempts import attempt_of
from hpcdl.errors import UsageError
from hpcdl.lock import Holder, read_lock, release_lock, still_ours, take_lock
from hpcdl.rundir import RunDir

# Processes that only touch files may be forked whatever threads other tests have left behind.
pytestmark = pytest.mark.filterwarnings("ignore:.*is multi-threaded:DeprecationWarning")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def never(job_id: str) -> bool | None:
    raise AssertionError(f"asked for {job_id}")


def says(active: bool | None) -> Callable[[str], bool | None]:
    return lambda job_id: active


def test_a_lock_is_taken_and_given_back(run: RunDir) -> None:
    assert read_lock(run) is None
    holder = take_lock(run, "77-0", "77", 0, never)
    assert read_lock(run) == holder
    assert still_ours(run, "77-0")
    assert not still_ours(run, "77-1")
    release_lock(run, holder)
    assert read_lock(run) is None
    assert not still_ours(run, "77-0")
    assert list(run.path.iterdir()) == []
    release_lock(run, holder)


def test_a_job_that_is_active_keeps_it(run: RunDir) -> None:
    holder = take_lock(run, "77-0", "77", 0, never)
    with pytest.raises(
        UsageError, match=r"job 77 on .* is writing this run \(attempt 77-0\); wait for it, or `hpcdl canc"
    ):
        take_lock(run, "78-0", "78", 0, says(True))
    assert read_lock(run) == holder
    assert [path.name for path in run.path.iterdir()] == [".lock"]


def test_a_dead_jobs_lock_is_taken_over(run: RunDir) -> None:
    take_lock(run, "77-0", "77", 0, never)
    asked: list[str] = []
    holder = take_lock(run, "78-0", "78", 0, lambda job_id: asked.append(job_id) or False)  # type: ignore[func-returns-value]
    assert asked == ["77"]
    assert read_lock(run) == holder
    assert [path.name for path in run.path.iterdir()] == [".lock"]


def test_a_job_that_was_started_again_takes_its_own_over(run: RunDir) -> None:
    take_lock(run, "77-0", "77", 0, never)
    holder = take_lock(run, "77-1", "77", 1, never)
    assert read_lock(run) == holder
    for restart in (0, 1):
        with pytest.raises(UsageError, match="job 77"):
            take_lock(run, f"77-{restart}", "77", restart, never)


def test_a_holder_that_beats_keeps_it_where_the_scheduler_knows_nothing(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENCE_S", 30)
    take_lock(run, "by-hand-1-0", "by-hand-1", 0, never)
    attempt = attempt_of(run, "by-hand-1-0")
    attempt.make()
    attempt.beat("main", {"count": 1})
    timer = threading.Timer(1, lambda: attempt.beat(1, {"count": 1}))
    timer.start()
    began = time.monotonic()
    with pytest.raises(UsageError, match="job by-hand-1"):
        take_lock(run, "78-0", "78", 0, says(None))
    assert time.monotonic() - began < 10
    timer.join()


def test_a_holder_that_is_silent_loses_it_where_the_scheduler_knows_nothing(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENCE_S", 1)
    take_lock(run, "by-hand-1-0", "by-hand-1", 0, never)
    attempt = attempt_of(run, "by-hand-1-0")
    attempt.make()
    attempt.beat("main", {"count": 1})
    began = time.monotonic()
    holder = take_lock(run, "78-0", "78", 0, says(None))
    assert time.monotonic() - began >= 1
    assert read_lock(run) == holder


def _take(run: RunDir, number: int, barrier: Any, won: Any) -> None:
    barrier.wait()
    try:
        take_lock(run, f"{number}-0", str(number), 0, lambda job_id: job_id != "dead")
    except UsageError:
        return
    won.put(number)


@pytest.mark.parametrize("stale", [False, True])
def test_of_two_that_want_it_at_once_one_gets_it(run: RunDir, stale: bool) -> None:
    context = multiprocessing.get_context("fork")
    for _ in range(25):
        run.lock.unlink(missing_ok=True)
        if stale:
            take_lock(run, "dead-0", "dead", 0, never)
        barrier, won = context.Barrier(2), context.SimpleQueue()
        processes = [context.Process(target=_take, args=(run, number, barrier, won)) for number in (1, 2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(30)
            assert process.exitcode == 0
        winner = won.get()
        assert won.empty()
        assert still_ours(run, f"{winner}-0")
        assert [path.name for path in run.path.iterdir()] == [".lock"]


def test_one_that_was_overtaken_puts_the_new_lock_back(run: RunDir) -> None:
    take_lock(run, "dead-0", "dead", 0, never)
    quicker: list[Holder] = []

    def slow(job_id: str) -> bool:
        if not quicker:
            quicker.append(take_lock(run, "1-0", "1", 0, says(False)))
            return False
        return True

    with pytest.raises(UsageError, match="job 1 on"):
        take_lock(run, "2-0", "2", 0, slow)
    assert read_lock(run) == quicker[0]


def test_only_the_holder_gives_it_back(run: RunDir) -> None:
    first = take_lock(run, "77-0", "77", 0, never)
    second = take_lock(run, "77-1", "77", 1, never)
    release_lock(run, first)  # it had been thought dead, and comes to its end after all
    assert read_lock(run) == second
    assert still_ours(run, "77-1")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"token": "x"}'])
def test_a_damaged_lock_is_nobodys(run: RunDir, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "READ_PAUSES_S", (0.01,))
    run.lock.write_text(content)
    assert read_lock(run) is None
    holder = take_lock(run, "77-0", "77", 0, never)
    assert read_lock(run) == holder


def test_a_file_system_in_trouble_costs_nobody_the_lock(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = take_lock(run, "77-0", "77", 0, never)
    real, failures = Path.read_text, [errno.ESTALE, errno.EIO]

    def read_text(path: Path, *args: Any, **keywords: Any) -> str:
        if failures:
            raise OSError(failures.pop(), "in trouble")
        return real(path, *args, **keywords)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert still_ours(run, "77-0")
    assert read_lock(run) == holder


def test_without_hard_links(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    take_lock(run, "77-0", "77", 0, never)
    with pytest.raises(UsageError, match="job 77"):
        take_lock(run, "78-0", "78", 0, says(True))
    assert json.loads(run.lock.read_text())["job_id"] == "77"
    holder = take_lock(run, "78-0", "78", 0, says(False))
    assert read_lock(run) == holder
