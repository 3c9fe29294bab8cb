"""Agents as they are (`python -m hpcdl.watch.rank`), each with a few lines in the place of its training.

The lines are found as `hpcdl.train`, in a folder that stands before the real package; they know `pulse` and `rank`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
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
CHANGED = """
import sys
from hpcdl.rundir import RunDir
from hpcdl.watch import rank
{changes}
run = RunDir(rank.Path(sys.argv[1]))
sys.exit(rank.Agent(run, rank.attempt_of(run, sys.argv[2])).watch())
"""
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


Start = type[Ranks]


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Start agents; what is left of them ends with the test."""
    for name in list(os.environ):
        if name.startswith(("HPCDL_", "OMPI_", "PMI", "SLURM_")):
            monkeypatch.delenv(name)
    started: list[Ranks] = []

    def start(*trainings: str, changes: str = "", **variables: str) -> Ranks:
        started.append(Ranks(tmp_path, list(trainings), changes, variables))
        return started[-1]

    yield start
    for one in started:
        for agent in one.agents:
            agent.kill()
            agent.wait()
