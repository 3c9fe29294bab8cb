"""Agents as they are (`python -m hpcdl.watch.rank`), each with a few lines in the place of its training.

The lines are found as `hpcdl.train`, in a folder that stands before the real package; they know `pulse` and `rank`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hpcdl
from hpcdl.attempts import CONTINUE_ME, AttemptDir, attempt_of
from hpcdl.batch.local import process_start
from hpcdl.rundir import RunDir
from tests.faults.runs import until

PACKAGE = f"__version__ = '0'\n__path__.append({str(Path(hpcdl.__file__).parent)!r})\n"
TRAIN = """
import os, signal, sys, time
from pathlib import Path
from hpcdl.pulse import own_pulse
from hpcdl.ranks import own_rank
pulse, rank = own_pulse(), own_rank()
exec(Path(sys.argv[1], f"train-{rank}.py").read_text())
"""
LISTEN = """
asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
pulse.advance(1)
while not asked:
    time.sleep(0.02)
"""
pytestmark = pytest.mark.slow  # real processes, and mostly waiting

CHANGED = """
import sys
from hpcdl.rundir import RunDir
from hpcdl.watch import rank
{changes}
run = RunDir(rank.Path(sys.argv[1]))
sys.exit(rank.Agent(run, rank.attempt_of(run, sys.argv[2])).watch())
"""
QUICK = "rank.beat_s, rank.GRACE_S = lambda size: 0.2, 0.5"
"""What some agents are told, lest the tests take long."""

BEAT = {"count": 1, "state": "runs", "rank": 2, "host": "n4", "step": 12, "phase": "saves", "progress": 0}
TIMEOUT_S = 40


class Ranks:
    """The agents of one attempt, by rank."""

    def __init__(self, folder: Path, trainings: list[str], changes: str, variables: dict[str, str]) -> None:
        self.attempt: AttemptDir = attempt_of(RunDir(folder / "run"), "77-2")
        self.attempt.make()
        package = folder / "shim" / "hpcdl"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(PACKAGE)
        (package / "train.py").write_text(TRAIN)
        self.agents = []
        for rank, training in enumerate(trainings):
            (folder / "run" / f"train-{rank}.py").write_text(textwrap.dedent(training))
            size = variables.get("OMPI_COMM_WORLD_SIZE", str(len(trainings)))
            environment = {
                **os.environ, "PYTHONPATH": str(package.parent), "OMPI_COMM_WORLD_RANK": str(rank), **variables,
                "OMPI_COMM_WORLD_SIZE": size,
            }  # fmt: skip
            start = ["-c", CHANGED.format(changes=changes)] if changes else ["-m", "hpcdl.watch.rank"]
            command = [sys.executable, "-P", *start, str(folder / "run"), self.attempt.name]
            log = (folder / f"log-{rank}").open("wb")
            self.agents.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            log.close()
        self.logs = [folder / f"log-{rank}" for rank in range(len(trainings))]

    def said(self, rank: int) -> str:
        """What the agent and its training have printed so far."""
        return self.logs[rank].read_text()

    def codes(self) -> list[int]:
        """Exit codes of all agents, once they have ended."""
        return [agent.wait(TIMEOUT_S) for agent in self.agents]

    def failure(self) -> tuple[str, int, str]:
        """Kind, rank and line of the failure that was told."""
        found = self.attempt.failure()
        assert found is not None
        return found["kind"], found["rank"], found["line"]

    def trainings(self) -> list[int]:
        """Process ids of the trainings, once every agent has beaten."""
        until(lambda: all(self.attempt.read_beat(rank) for rank in range(len(self.agents))), TIMEOUT_S)
        return [(self.attempt.read_beat(rank) or {})["pid"] for rank in range(len(self.agents))]


Start = Callable[..., Ranks]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start agents; what is left of them ends with the test."""
    for name in list(os.environ):
        if name.startswith(("HPCDL_", "OMPI_", "PMI", "SLURM_")):
            monkeypatch.delenv(name)
    started: list[Ranks] = []

    def call(*trainings: str, changes: str = "", **variables: str) -> Ranks:
        started.append(Ranks(tmp_path, list(trainings), changes, variables))
        return started[-1]

    yield call
    for one in started:
        for agent in one.agents:
            agent.kill()
            agent.wait()


def test_a_good_end(start: Start) -> None:
    ranks = start("print('out'); print('err', file=sys.stderr); pulse.advance(5); pulse.stop_takes(1.5)")
    assert ranks.codes() == [0]
    assert sorted(ranks.said(0).split()) == ["err", "out"]
    assert ranks.attempt.failure() is None
    beat = ranks.attempt.read_beat(0) or {}
    assert (beat["state"], beat["code"], beat["step"], beat["stop_s"], beat["rank"]) == ("ended", 0, 5, 1.5, 0)


def test_a_training_knows_its_attempt_and_its_job(start: Start) -> None:
    ranks = start("print(os.environ['HPCDL_ATTEMPT'], os.environ['HPCDL_JOB_ID'], sys.argv[1:])")
    assert ranks.codes() == [0]
    assert ranks.said(0) == f"77-2 77 [{str(ranks.attempt.path.parent.parent)!r}]\n"


def test_a_stop_is_a_good_end_for_the_launcher(start: Start) -> None:
    ranks = start(f"sys.exit({CONTINUE_ME})")
    assert ranks.codes() == [0]
    assert (ranks.attempt.read_beat(0) or {})["state"] == "ended"


def test_an_error_is_told_once_with_its_traceback(start: Start) -> None:
    fails = """
        pulse.advance(7)
        print("what it said before", file=sys.stderr)
        pulse.fail("own", "ArithmeticError: ünï", "Traceback:\\n  the ünï line\\n")
        pulse.wait_taken(20)
        os._exit(1)
    """
    suffers = """
        while not Path(sys.argv[1], "attempts/77-2/failure.json").exists():
            time.sleep(0.01)
        print("a long echo", file=sys.stderr)
        pulse.fail("peer", "Horovod: gone", "Traceback:\\n  another one\\n")
        os._exit(1)
    """
    ranks = start(suffers, fails, suffers)
    assert ranks.codes() == [1, 1, 1]
    lines = ranks.said(1).splitlines()
    assert lines[0].startswith("hpcdl: rank 1 of 3 on ")
    assert lines[0].endswith(" after step 7: ArithmeticError: ünï")
    assert lines[1:] == ["  | Traceback:", "  |   the ünï line", "  | what it said before"]
    assert ranks.said(0) == ranks.said(2) == ""
    assert ranks.failure() == ("error", 1, "ArithmeticError: ünï")
    assert ranks.attempt.stderr_file(0).read_text() == ranks.attempt.stderr_file(2).read_text() == "a long echo\n"


def test_an_error_of_all_ranks_is_told_by_rank_0(start: Start) -> None:
    told = "pulse.advance(3); pulse.fail('all', 'step 4: loss is nan', ''); pulse.wait_taken(20); os._exit(1)"
    waits = "pulse.advance(3); pulse.fail('peer', 'step 4: loss is nan', ''); pulse.wait_taken(20); os._exit(1)"
    ranks = start(told, waits, waits)
    assert ranks.codes() == [1, 1, 1]
    assert ranks.said(0) == "hpcdl: all 3 ranks stopped after step 3: step 4: loss is nan\n"
    assert ranks.said(1) == ranks.said(2) == ""


@pytest.mark.parametrize(
    ("end", "kind", "line", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed", "killed by SIGKILL (out of memory? it had grown to 0.", 137),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crash", "killed by SIGSEGV", 139),
        ("os._exit(3)", "crash", "ended with code 3", 3),
        ("raise SystemExit('a library gave up')", "crash", "ended with code 1", 1),
    ],
)
def test_an_end_without_a_word(start: Start, end: str, kind: str, line: str, code: int) -> None:
    ranks = start(f"pulse.advance(4)\n{end}")
    assert ranks.codes() == [code]
    assert ranks.failure()[:2] == (kind, 0)
    assert f"after step 4: {line}" in ranks.said(0)
    assert ranks.said(0).count("hpcdl:") == 1
    if "library" in end:
        assert "  | a library gave up\n" in ranks.said(0)


def test_one_that_only_lost_another_waits_for_who_knows_why(start: Start) -> None:
    knows_nothing = "pulse.fail('peer', 'Horovod: gone', ''); os._exit(1)"
    ranks = start(knows_nothing, "time.sleep(3); os.kill(os.getpid(), 9)", changes=QUICK)
    assert ranks.codes() == [1, 137]
    assert ranks.said(0) == ""
    assert ranks.failure()[:2] == ("killed", 1)


@pytest.mark.slow
def test_one_that_only_lost_another_tells_when_nobody_else_does(start: Start) -> None:
    ranks = start(
        "pulse.fail('peer', 'Horovod: gone', 'Traceback'); os._exit(1)", changes=QUICK + "; rank.PEER_WAIT_S = 0.5"
    )
    assert ranks.codes() == [1]
    assert ranks.failure() == ("communication", 0, "Horovod: gone")
    assert "  | Traceback\n" in ranks.said(0)


def test_a_training_that_cannot_end_is_ended(start: Start) -> None:
    hangs = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGUSR1, signal.SIG_IGN); time.sleep(600)"
    )
    ranks = start(hangs, "time.sleep(1); os._exit(3)", changes=QUICK)
    assert ranks.codes() == [1, 3]
    assert ranks.failure()[:2] == ("crash", 1)
    assert ranks.said(0) == ""


def test_stderr_comes_through_while_all_is_well(start: Start) -> None:
    ranks = start(
        "pulse.advance(1); print('a warning', file=sys.stderr)\nwhile True: pulse.advance(2); time.sleep(0.1)"
    )
    until(lambda: ranks.said(0) == "a warning\n", TIMEOUT_S)
    assert not ranks.attempt.stderr_file(0).exists()


@pytest.mark.slow
def test_stderr_after_another_ranks_failure_is_set_aside(start: Start) -> None:
    noisy = """
        pulse.advance(1)
        while True:
            print("noise", file=sys.stderr)
            time.sleep(0.2)
    """
    ranks = start(
        noisy, "pulse.advance(1); time.sleep(3); os._exit(3)", changes="rank.beat_s, rank.GRACE_S = lambda size: 0.2, 2"
    )
    assert ranks.codes() == [1, 3]
    assert ranks.said(0) == ""  # it got nothing done since, so all of this may belong to the failure
    assert set(ranks.attempt.stderr_file(0).read_text().split()) == {"noise"}
    assert ranks.attempt.stderr_file(0).read_text().count("noise") > 10


def test_a_stop_reaches_the_training(start: Start) -> None:
    ranks = start(LISTEN, LISTEN + f"sys.exit({CONTINUE_ME})")
    ranks.trainings()
    until(lambda: all((ranks.attempt.read_beat(rank) or {})["step"] for rank in range(2)), TIMEOUT_S)
    ranks.attempt.say("stop", why="walltime")
    assert ranks.codes() == [0, 0]
    assert ranks.attempt.failure() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_from_a_launcher_is_a_stop(start: Start, number: signal.Signals) -> None:
    ranks = start(LISTEN)
    until(lambda: (ranks.attempt.read_beat(0) or {"step": 0})["step"], TIMEOUT_S)
    ranks.agents[0].send_signal(number)
    assert ranks.codes() == [0]
    assert ranks.said(0) == ""


def test_a_stop_before_it_can_listen_is_no_failure(start: Start) -> None:
    ranks = start("time.sleep(600)")
    ranks.trainings()
    ranks.attempt.say("stop", why="cancelled")
    assert ranks.codes() == [0]
    assert (ranks.said(0), ranks.attempt.failure()) == ("", None)


def test_a_stop_that_one_rank_cannot_hear_is_no_failure_of_the_other(start: Start) -> None:
    ranks = start(LISTEN + "pulse.fail('peer', 'Horovod: gone', ''); os._exit(1)", "time.sleep(600)", changes=QUICK)
    until(lambda: (ranks.attempt.read_beat(0) or {"step": 0})["step"], TIMEOUT_S)
    ranks.attempt.say("stop", why="walltime")
    assert ranks.codes() == [0, 0]
    assert ranks.attempt.failure() is None


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_an_agent_that_is_killed_takes_its_training_along(start: Start) -> None:
    ranks = start("time.sleep(600)")
    (pid,) = ranks.trainings()
    assert process_start(pid)
    ranks.agents[0].kill()
    assert ranks.codes() == [-signal.SIGKILL]
    until(lambda: not process_start(pid), TIMEOUT_S)


@pytest.mark.parametrize(("rank", "silent"), [(0, 2), (1, 0)])
def test_a_neighbour_that_falls_silent(start: Start, rank: int, silent: int) -> None:
    """Rank 0 watches all others, and these watch rank 0."""
    trainings = ["time.sleep(600)"] * 2 if rank else ["time.sleep(600)"]
    ranks = start(*trainings, changes=QUICK, OMPI_COMM_WORLD_SIZE="3", HPCDL_NODE_TIMEOUT_S="2")
    ranks.trainings()
    if rank:
        ranks.agents[0].send_signal(signal.SIGSTOP)
    else:
        ranks.attempt.beat(silent, BEAT)
    until(ranks.attempt.failure, TIMEOUT_S)
    assert ranks.agents[rank].wait(TIMEOUT_S) == 1
    kind, who, line = ranks.failure()
    assert (kind, who) == ("node-lost", silent)
    assert line.startswith("no sign of life for ")
    assert f"hpcdl: rank {silent} of 3 on " in ranks.said(rank)
    if not rank:
        assert "on n4 failed after step 12: no sign of life for" in ranks.said(0)


def test_several_neighbours_fall_silent_at_once(start: Start) -> None:
    ranks = start("time.sleep(600)", changes=QUICK, OMPI_COMM_WORLD_SIZE="4", HPCDL_NODE_TIMEOUT_S="1")
    for silent in (1, 2, 3):
        ranks.attempt.beat(silent, {**BEAT, "rank": silent})
    assert ranks.codes() == [1]
    assert "rank 1 of 4 on n4 (with ranks 2, 3) failed" in ranks.said(0)


def test_a_neighbour_that_has_ended_is_not_missed(start: Start) -> None:
    ranks = start(LISTEN, "pass", changes=QUICK, HPCDL_NODE_TIMEOUT_S="1")
    assert ranks.agents[1].wait(TIMEOUT_S) == 0
    time.sleep(3)
    assert ranks.attempt.failure() is None
    ranks.agents[0].terminate()
    assert ranks.codes() == [0, 0]


def test_a_training_that_gets_nothing_done(start: Start) -> None:
    waits = "pulse.advance(3); pulse.phase('waits for the others'); time.sleep(600)"
    loads = "pulse.advance(3); pulse.phase('loads a batch'); time.sleep(600)"
    ranks = start(waits, waits, loads, changes=QUICK, HPCDL_STALL_TIMEOUT_S="3")
    assert ranks.codes() == [1, 1, 1]
    kind, who, line = ranks.failure()
    assert (kind, who) == ("stalled", 2)
    assert line.startswith("loads a batch for ")
    assert ranks.said(0).count("\n") == 1
    assert ranks.said(1) == ranks.said(2) == ""
