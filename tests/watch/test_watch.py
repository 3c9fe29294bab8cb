"""The process that watches an attempt, with lines of sh in the place of the launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpcdl.attempts import CONTINUE_ME, AttemptDir, attempt_of
from hpcdl.batch.local import process_start
from hpcdl.errors import FailedError
from hpcdl.lock import read_lock, take_lock
from hpcdl.ranks import node_name
from hpcdl.resources import Resources
from hpcdl.rundir import RunDir
from hpcdl.watch import launch
from hpcdl.watch.__main__ import MARGIN_S, Attempt
from tests.faults.runs import until

pytestmark = pytest.mark.slow  # real processes, and mostly waiting

JOB = "local-1"
TIMEOUT_S = 40
WAITS = 'until grep -q stop "$RUN/attempts/$0/control"; do sleep 0.05; done\n'
"""What ranks do until they are asked to stop."""


def event(kind: str, **details: Any) -> str:
    """A line of sh that records an event of the attempt, as rank 0 does."""
    more = "".join(f', "{key}": {value}' for key, value in details.items())
    line = f'{{"event": "{kind}", "job_id": "{JOB}", "attempt": "%s", "time": 1{more}}}\\n'
    return f'printf \'{line}\' "$0" >> "$RUN/attempts.jsonl"\n'


SAVES = 'mkdir -p "$RUN/checkpoints/step-00000007"\n' + event("ended", why='"asked to stop"')
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    for name in list(os.environ):
        if name.startswith(("HPCDL_", "SLURM_")):
            monkeypatch.delenv(name)
    made = RunDir(tmp_path / "it's one")
    made.path.mkdir()
    ask(made)
    return made


def ask(run: RunDir, **resources: Any) -> None:
    """What the run asks for."""
    run.spec_file.write_text(yaml.safe_dump({"kind": "train", "resources": asdict(Resources(**resources))}))


@pytest.fixture
def start(run: RunDir) -> Iterator[Start]:
    """Start `python -m hpcdl.watch` with a launcher."""
    started: list[subprocess.Popen[str]] = []

    def call(launcher: str, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", "-m", "hpcdl.watch", str(run.path), "sh", "-c", launcher]
        environment = {**os.environ, "RUN": str(run.path), "HPCDL_JOB_ID": JOB, **variables}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield call
    for one in started:
        one.kill()
        one.communicate()


def ended(watch: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = watch.communicate(timeout=TIMEOUT_S)
    assert out == ""
    return watch.returncode, err


def events(run: RunDir, kind: str) -> list[dict[str, Any]]:
    return [found for found in run.events() if found["event"] == kind]


def launched(run: RunDir) -> bool:
    return attempt_of(run, f"{JOB}-0").control.exists() and bool(events(run, "began"))


def test_a_good_end(run: RunDir, start: Start) -> None:
    watch = start(event("started") + event("ended", why='"done"'))
    assert ended(watch) == (0, f"hpcdl: attempt {JOB}-0 of it's one: done\n")
    (closed,) = events(run, "closed")
    assert (closed["code"], closed["failure"], closed["attempt"]) == (0, None, f"{JOB}-0")
    assert [found["event"] for found in run.events()] == ["began", "started", "ended", "closed"]
    assert read_lock(run) is None


def test_the_lock_is_held_meanwhile(run: RunDir, start: Start) -> None:
    watch = start(WAITS)
    until(lambda: launched(run))
    holder = read_lock(run)
    assert holder is not None
    assert (holder.attempt, holder.job_id, holder.restart) == (f"{JOB}-0", JOB, 0)
    second = start("echo launched", HPCDL_JOB_ID="by-hand")
    code, err = ended(second)
    assert (code, err.count("\n")) == (2, 1)
    assert f"job {JOB} on {node_name()} is writing this run (attempt {JOB}-0)" in err
    watch.terminate()
    assert ended(watch)[0] == CONTINUE_ME


@pytest.mark.parametrize(
    ("number", "why", "requeued"),
    [
        (signal.SIGUSR1, "stopped before its walltime ended; goes on from step 7", 1),
        (signal.SIGTERM, "was cancelled", 0),
    ],
)
def test_a_stop_is_handed_on(run: RunDir, start: Start, number: signal.Signals, why: str, requeued: int) -> None:
    watch = start(event("started") + WAITS + SAVES)
    until(lambda: launched(run))
    watch.send_signal(number)
    code, err = ended(watch)
    assert code == CONTINUE_ME
    assert f"hpcdl: attempt {JOB}-0 of it's one: {why}" in err
    (closed,) = events(run, "closed")
    assert (closed["from_step"], closed["to_step"]) == (0, 7)
    assert len(events(run, "requeued")) == requeued
    assert attempt_of(run, f"{JOB}-0").said()["stop"]["why"] == ("walltime" if requeued else "cancelled")


def test_a_cancellation_wins_over_the_walltime(run: RunDir, start: Start) -> None:
    watch = start("sleep 1.5\n" + WAITS + SAVES, HPCDL_END_TIME=str(time.time() + 100))
    until(lambda: launched(run))
    watch.send_signal(signal.SIGUSR1)
    until(lambda: events(run, "warned"))
    watch.send_signal(signal.SIGTERM)
    code, err = ended(watch)
    assert code == CONTINUE_ME
    assert "was cancelled" in err
    assert not events(run, "requeued")


def test_a_job_by_hand_is_not_put_into_any_queue(run: RunDir, start: Start) -> None:
    watch = start(WAITS + SAVES.replace(JOB, "by-hand"), HPCDL_JOB_ID="by-hand")
    until(lambda: any(run.attempts.glob("by-hand-*/control")))
    watch.send_signal(signal.SIGUSR1)
    code, err = ended(watch)
    assert code == CONTINUE_ME
    assert "stopped before its walltime ended; it may not requeue; `hpcdl resume it's one` goes on from step 7" in err


def test_a_launcher_that_fails_is_not_launched_again_by_a_new_job(run: RunDir, start: Start) -> None:
    code, err = ended(start("exit 3"))
    assert code == 3
    assert err.startswith(f"hpcdl: attempt {JOB}-0 of it's one: ended with code 3, and no rank could say why; ")


def test_a_launcher_that_worked_before_is_launched_again(run: RunDir, start: Start) -> None:
    run.record("began", JOB, attempt=f"{JOB}-0", from_step=0)
    run.record("started", JOB, attempt=f"{JOB}-0", step=0)
    once = '[ -e "$RUN/tried" ] || { touch "$RUN/tried"; exit 3; }\n'
    code, err = ended(start(once + event("started") + event("ended", why='"done"'), HPCDL_RESTART_COUNT="1"))
    assert code == 0, err
    assert "hpcdl: the launcher ended with code 3; once more in 2 s\n" in err
    assert [found["attempt"] for found in events(run, "began")] == [f"{JOB}-0", f"{JOB}-1"]


def test_a_launcher_that_is_not_there(run: RunDir) -> None:
    command = [sys.executable, "-P", "-m", "hpcdl.watch", str(run.path), "/no/such/srun"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert (done.returncode, done.stderr) == (1, "hpcdl: /no/such/srun: cannot be started: No such file or directory\n")
    assert read_lock(run) is None


def test_what_the_beats_tell_of_a_rank_that_nobody_told_of(run: RunDir, start: Start) -> None:
    beat = {"rank": 0, "host": "n4", "step": 12, "state": "lost", "code": -9, "count": 3, "phase": "computes"}
    AttemptDir(run.path).beat(0, beat)
    code, err = ended(start('cp "$RUN/beat-00000" "$RUN/attempts/$0/"; exit 137'))
    assert code == 1
    assert err.splitlines()[0] == "hpcdl: rank 0 of 1 on n4 failed after step 12: killed by SIGKILL"
    assert events(run, "closed")[0]["failure"]["kind"] == "crash"


def test_a_stale_lock_is_taken_over(run: RunDir, start: Start) -> None:
    take_lock(run, f"{JOB}-0", JOB, 0, lambda job_id: None)
    watch = start(event("ended", why='"done"'), HPCDL_RESTART_COUNT="1")
    assert ended(watch)[0] == 0
    assert read_lock(run) is None


@pytest.fixture
def attempt(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Attempt]]:
    """An attempt whose walltime ends in so many seconds, and whose rank 0 measured that a stop takes so long."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    monkeypatch.setenv("HPCDL_JOB_ID", JOB)

    def make(ends_in_s: float | None, stop_s: float, **resources: Any) -> Attempt:
        ask(run, **resources)
        made = Attempt(run, [])
        made.dir.make()
        made.dir.beat(0, {"stop_s": stop_s})
        made.ends = None if ends_in_s is None else time.time() + ends_in_s
        return made

    yield make
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("ends_in_s", "stop_s", "resources", "expected_s"),
    [
        (540, 5, {}, 540 - MARGIN_S - 4 - 15),  # as late as three times a stop allows
        (540, 0, {}, 0),  # nothing is known: the script's own lead time
        (600, 0, {}, 60),  # Slurm may be a minute early
        (540, 300, {}, 540 - MARGIN_S - 4 - 900),  # late already: at once
        (170, 5, {"signal": "USR1@120"}, 50),  # as the user said
        (700, 5, {}, 0),  # too early for Slurm: sent by hand
        (None, 5, {}, 0),  # nobody knows the end
    ],
)
def test_when_ranks_are_asked_to_stop(
    attempt: Callable[..., Attempt],
    ends_in_s: float | None,
    stop_s: float,
    resources: dict[str, str],
    expected_s: float,
) -> None:
    made = attempt(ends_in_s, stop_s, **resources)
    assert made._latest_stop() - time.time() == pytest.approx(expected_s, abs=2)


def test_a_stop_that_an_earlier_attempt_measured(attempt: Callable[..., Attempt], run: RunDir) -> None:
    for stop_s in (7.0, 9.0, 0.0):
        run.record("closed", "local-0", stop_s=stop_s)
    made = attempt(540, 0)
    assert made._latest_stop() - time.time() == pytest.approx(540 - MARGIN_S - 4 - 27, abs=2)


@pytest.fixture
def folder(run: RunDir) -> AttemptDir:
    return attempt_of(run, "1-0")


@pytest.mark.slow
def test_a_launcher_that_outlives_a_failure_is_ended(folder: AttemptDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE_S", 0.5)
    began = time.monotonic()
    stubborn = "trap 'echo no' TERM; while :; do sleep 0.1; done"
    told: list[int] = []

    def tick() -> None:
        if not told:
            told.append(1)
            folder.claim({"kind": "error"})

    assert launch.launch(["sh", "-c", stubborn], folder, tick) == 128 + signal.SIGKILL
    assert 4 < time.monotonic() - began < 15


def test_a_launcher_that_outlives_rank_0_is_ended(folder: AttemptDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "PARTING_S", 0.5)
    code = launch.launch(["sh", "-c", "sleep 600"], folder, lambda: folder.beat(0, {"state": "ended"}))
    assert code == 128 + signal.SIGTERM


def test_exit_codes_as_a_shell_gives_them(folder: AttemptDir) -> None:
    assert launch.launch(["sh", "-c", "[ $0 = 1-0 ] && exit 7"], folder) == 7
    assert launch.launch(["sh", "-c", "kill -SEGV $$"], folder) == 128 + signal.SIGSEGV
    with pytest.raises(FailedError, match="/no/launcher: cannot be started: No such file"):
        launch.launch(["/no/launcher"], folder)


def test_a_launcher_does_not_outlive_who_started_it(folder: AttemptDir, tmp_path: Path) -> None:
    def fail() -> None:
        if (tmp_path / "pid").exists():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        launch.launch(["sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 600"], folder, fail)
    pid = int((tmp_path / "pid").read_text())
    assert process_start(pid) == ""
