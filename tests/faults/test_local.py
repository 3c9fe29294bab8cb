"""Trainings on this machine that are interrupted and killed at random moments: each ends with the weights of one that was not.

All run in one project and are compared with runs there that nothing happens to. Moments are drawn from a seed that is
printed; HPCDL_TEST_SEED repeats them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from hpcdl.attempts import CONTINUE_ME
from hpcdl.batch.local import _session
from hpcdl.batch.queue import job_state
from hpcdl.lock import read_lock
from hpcdl.ranks import node_name
from hpcdl.rundir import RunDir, all_runs
from tests.conftest import Hpcdl
from tests.datasets import write_blobs
from tests.faults.runs import beats, events, losses, newest_line, until, weights_digest, write_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 60
END_S = 30
"""Within so long a job must have ended after one of its processes did."""

START_S = 120
SEED = int(os.environ.get("HPCDL_TEST_SEED", random.SystemRandom().randrange(10**6)))
Run = Path
Whole = Callable[[int], Run]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of all runs of this file; what a failed test leaves running ends with it."""
    folder = tmp_path_factory.mktemp("faults") / "it's one"
    folder.mkdir()
    write_project(folder)
    yield folder
    for run in filter(lambda run: state(run.path) == "", all_runs(folder / "runs")):
        kill_all(run.path)


@pytest.fixture
def workdir(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the place of the empty working directory that other tests have."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in list(os.environ):
        if name.startswith(("HPCDL_", "SBATCH_", "SLURM_")):
            monkeypatch.delenv(name)
    return project


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> Iterator[random.Random]:
    """Random moments of this test's own."""
    yield random.Random(f"{SEED} {request.node.name}")
    print("HPCDL_TEST_SEED", SEED)  # last: the command line takes what was printed before


@pytest.fixture
def whole(hpcdl: Hpcdl) -> Whole:
    """The run on so many ranks that nothing happens to."""

    def find(ranks: int) -> Run:
        run = Path("runs", f"whole-{ranks}")
        if not run.exists():
            submit(hpcdl, run.name, ranks)
            assert wait(run) == "COMPLETED"
        return run

    return find


def submit(hpcdl: Hpcdl, name: str, ranks: int, *flags: str, architecture: str = "paced", data: str = "data") -> Run:
    size = ["--ntasks-per-node", str(ranks), "--set", f"max_steps={STEPS}"]
    result = hpcdl("submit", architecture, "--data", data, "--name", name, *size, *flags)
    assert result.code == 0, result.err
    return Path("runs", name)


def pace(seconds: float) -> list[str]:
    return ["--set", f"pause_s={seconds}"]


def again(hpcdl: Hpcdl, how: str, run: Run, *flags: str) -> str:
    result = hpcdl(how, run.name, *flags)
    assert result.code == 0, result.err
    return result.err


def state(run: Run) -> str:
    info = job_state(RunDir(run))
    assert info is not None
    return "" if info.active else info.state


def wait(run: Run, seconds: float = 150) -> str:
    until(lambda: state(run), seconds)
    return state(run)


def reached(run: Run, step: int) -> None:
    """Wait until the run has come so far."""
    until(lambda: newest_line(run) >= step, START_S)


def starts(run: Run, number: int) -> None:
    """Wait until the training has come to its first step that often."""
    until(lambda: len(events(run, "started")) == number, START_S)


def leader(run: Run) -> int:
    return int(events(run, "running")[-1]["session"])


def processes(run: Run, words: Sequence[str]) -> list[int]:
    """Processes of the run's job whose command line begins so; anything in the place of an empty word."""
    found = []
    for pid in _session(leader(run)):
        command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if all(wanted in ("", given) for wanted, given in zip(words, command, strict=False)):
            found.append(pid)
    return found


def kill_all(run: Run) -> None:
    """Kill the run's job with its supervisor, as when the machine goes down."""
    session, supervisor = leader(run), int(events(run, "submitted")[-1]["pid"])
    for pid in [supervisor, *_session(session)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(supervisor, 0)
    until(lambda: not _session(session), END_S)


def log(run: Run) -> str:
    return "".join(RunDir(run).log(job_id).read_text() for job_id in RunDir(run).job_ids())


def same(run: Run, other: Run) -> None:
    """Both have the same weights, and the same lines, none twice and none missing."""
    assert weights_digest(run) == weights_digest(other)
    assert losses(run) == losses(other)
    assert [step for step, _ in losses(run)] == list(range(1, STEPS + 1))


def row(hpcdl: Hpcdl, run: Run) -> dict[str, Any]:
    (found,) = json.loads(hpcdl("status", run.name, "--json").out)
    assert isinstance(found, dict)
    return found


def test_three_walltimes_and_one_submit(hpcdl: Hpcdl, whole: Whole) -> None:
    """Walltimes of some 20 s, of which half is left when the ranks are asked to stop; longer where starts take long."""
    expected = whole(2)
    began, started = (events(expected, kind)[0]["time"] for kind in ("began", "started"))
    seconds = round(12 + 3 * (started - began))
    flags = [*pace(2.1 * seconds / 2 / STEPS), "--time", f"0:{seconds}", "--max-requeues", "50"]
    run = submit(hpcdl, "walltimes", 2, *flags)
    assert wait(run, 250) == "COMPLETED"
    same(run, expected)
    assert len(RunDir(run).job_ids()) == 1
    assert row(hpcdl, run)["attempts"] == len(events(run, "began")) >= 3
    assert all(event["failure"] is None for event in events(run, "closed"))
    lines = hpcdl("logs", run.name).out.splitlines()
    steps = [int(line.split()[2]) for line in lines if line.startswith("train step ")]
    assert steps == list(range(1, STEPS + 1))
    assert sum("stopped before its walltime ended; goes on from step" in line for line in lines) >= 2
    assert not [line for line in lines if "failed" in line or "Traceback" in line]


@pytest.mark.parametrize(("ranks", "stops"), [(1, ["signal", "cancel", "signal"]), (4, ["cancel", "signal", "cancel"])])
def test_three_stops_at_random_steps(
    hpcdl: Hpcdl, whole: Whole, draw: random.Random, ranks: int, stops: list[str]
) -> None:
    expected = whole(ranks)
    run = submit(hpcdl, f"stops-{ranks}", ranks, *pace(0.15))  # a stop comes within two seconds
    for number, stop in enumerate(stops, start=1):
        starts(run, number)
        reached(run, events(run, "started")[-1]["step"] + draw.randint(1, 4))
        if stop == "signal":
            os.kill(leader(run), signal.SIGUSR1)
        else:
            hpcdl("cancel", run.name)
            assert wait(run, END_S) == "CANCELLED"
            again(hpcdl, "resume", run)
    assert wait(run) == "COMPLETED"
    same(run, expected)
    found = row(hpcdl, run)
    assert (found["attempts"], found["state"]) == (4, "COMPLETED")
    whys = [event["why"] for event in events(run, "closed")]
    assert [why.partition(";")[0] for why in whys] == [
        *("was cancelled" if stop == "cancel" else "stopped before its walltime ended" for stop in stops), "done",
    ]  # fmt: skip
    for before, after in zip(events(run, "closed"), events(run, "started")[1:], strict=False):
        assert before["to_step"] == after["step"]  # nothing was lost
    assert log(run).count("resumed from step-") == 3


VICTIMS = {
    "training": ["", "-P", "-m", "hpcdl.train"],
    "agent": ["", "-P", "-m", "hpcdl.watch.rank"],
    "launcher": ["mpirun"],
    "watch": ["", "-P", "-m", "hpcdl.watch"],
}


@pytest.mark.parametrize("ranks", [1, 2])
def test_any_process_may_be_killed(hpcdl: Hpcdl, whole: Whole, draw: random.Random, ranks: int) -> None:
    expected = whole(ranks)
    run = submit(hpcdl, f"killed-{ranks}", ranks, *pace(0.05))
    names = [name for name in VICTIMS if ranks > 1 or name != "launcher"]
    for number, name in enumerate(draw.sample(names, len(names)), start=1):
        starts(run, number)
        reached(run, events(run, "started")[-1]["step"] + draw.randint(2, 12))
        time.sleep(draw.random() * 0.1)
        victims = processes(run, VICTIMS[name])
        assert len(victims) == (ranks if name in ("training", "agent") else 1)
        victim = draw.choice(victims)
        of_rank = {beat["pid"]: rank for rank, beat in beats(run).items()}
        os.kill(victim, signal.SIGKILL)
        assert wait(run, END_S) == "FAILED"
        until(lambda: not _session(leader(run)), 5)
        told = RunDir(run).log(RunDir(run).job_ids()[-1]).read_text()
        if name == "training":
            (line,) = [line for line in told.splitlines() if line.startswith("hpcdl: rank ")]
            rank = of_rank[victim]
            assert line.startswith(f"hpcdl: rank {rank} of {ranks} on {node_name()} failed after step ")
            assert "killed by SIGKILL" in line
        again(hpcdl, draw.choice(["retry", "resume"]), run)
    assert wait(run) == "COMPLETED"
    same(run, expected)
    assert row(hpcdl, run)["attempts"] == len(names) + 1


STUCK = "\nimport time\ntime.sleep(600)\n"


@pytest.fixture
def stuck(workdir: Path) -> None:
    """An architecture `stuck`, whose trainings never begin."""
    if not Path("jobs/stuck.py").exists():
        Path("jobs/stuck.py").write_text(Path("jobs/paced.py").read_text() + STUCK)
        shutil.copyfile("configs/architectures/paced.yaml", "configs/architectures/stuck.yaml")


def stop_attempt(run: Run, number: int) -> None:
    """Signal the end of the walltime in the run's attempt of that number."""
    until(lambda: len(events(run, "began")) == number and beats(run), START_S)
    os.kill(leader(run), signal.SIGUSR1)


def test_attempts_without_progress_come_to_an_end(hpcdl: Hpcdl, stuck: None) -> None:
    run = submit(hpcdl, "stuck", 1, architecture="stuck")
    for number in (1, 2, 3):
        stop_attempt(run, number)
    assert wait(run, END_S) == "FAILED"
    assert [event["why"].partition(";")[0] for event in events(run, "closed")] == 3 * [
        "stopped before its walltime ended"
    ]
    assert "3 attempts in a row saved nothing new; ask for a longer --time, or look at the log" in log(run)
    found = row(hpcdl, run)
    assert (found["attempts"], found["job"]["exit_code"]) == (3, CONTINUE_ME)


@pytest.mark.parametrize("flags", [["--max-requeues", "0"], ["--no-requeue"]])
def test_a_job_that_may_not_requeue(hpcdl: Hpcdl, stuck: None, flags: list[str]) -> None:
    run = submit(hpcdl, f"once{''.join(flags)}", 1, *flags, architecture="stuck")
    stop_attempt(run, 1)
    assert wait(run, END_S) == "FAILED"
    assert len(events(run, "began")) == 1
    why = f"stopped before its walltime ended; it may not requeue; `hpcdl resume {run.name}` goes on from step 0"
    assert why in log(run)
    assert row(hpcdl, run)["job"]["exit_code"] == CONTINUE_ME


def by_hand(run: Run) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", run / "job.sbatch"], capture_output=True, text=True, timeout=START_S, check=False)


def test_two_writers(hpcdl: Hpcdl, whole: Whole) -> None:
    expected = whole(1)
    run = submit(hpcdl, "writers", 1, *pace(0.1))
    starts(run, 1)
    (job_id,) = RunDir(run).job_ids()
    second = by_hand(run)
    assert (second.returncode, second.stdout, second.stderr.count("\n")) == (2, "", 1)
    assert f"hpcdl: writers: job {job_id} on {node_name()} is writing this run" in second.stderr
    for how in ("resume", "retry"):
        result = hpcdl(how, "writers")
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert f"its job {job_id} is still RUNNING" in result.err
    assert newest_line(run) < STEPS
    assert wait(run) == "COMPLETED"
    same(run, expected)
    assert len(events(run, "began")) == 1
    assert read_lock(RunDir(run)) is None


def test_the_lock_of_a_killed_job_is_taken_over(hpcdl: Hpcdl, whole: Whole) -> None:
    expected = whole(1)
    run = submit(hpcdl, "stale", 1, *pace(0.1))
    reached(run, 7)
    kill_all(run)
    assert state(run) == "NODE_FAIL"
    (job_id,) = RunDir(run).job_ids()
    holder = read_lock(RunDir(run))
    assert holder is not None
    assert holder.job_id == job_id
    done = by_hand(run)
    assert done.returncode == 0, done.stderr
    same(run, expected)
    assert read_lock(RunDir(run)) is None


def test_another_number_of_ranks(hpcdl: Hpcdl, draw: random.Random) -> None:
    plain = ["--set", "dropout=0", "--set", "norm=group"]
    expected = submit(hpcdl, "plain", 1, *plain)
    run = submit(hpcdl, "moved", 2, *plain, *pace(0.05))
    reached(run, draw.randint(2, STEPS - 25))
    hpcdl("cancel", "moved")
    assert wait(run, END_S) == "CANCELLED"
    again(hpcdl, "resume", run, "--ntasks-per-node", "1")
    assert wait(run) == wait(expected) == "COMPLETED"
    before, after = losses(expected), losses(run)
    assert [step for step, _ in after] == [step for step, _ in before] == list(range(1, STEPS + 1))
    assert [loss for _, loss in after] == pytest.approx([loss for _, loss in before], rel=1e-4)
    assert [event["ranks"] for event in events(run, "started")] == [2, 1]


def test_a_data_set_that_has_changed(hpcdl: Hpcdl) -> None:
    write_blobs(Path("data2"), {"train": 40, "val": 8})
    fails = ["--set", "fail=0 13 raise", "--set", "checkpoint.steps=3"]
    run = submit(hpcdl, "changed", 1, *fails, data="data2")
    assert wait(run) == "FAILED"
    assert "failed after step 12: ArithmeticError: this rank cannot go on" in log(run)
    shutil.rmtree("data2")
    write_blobs(Path("data2"), {"train": 40, "val": 8}, seed=1)
    for how in ("resume", "retry"):
        result = hpcdl(how, "changed")
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert "data2: is not the data set that run changed began with" in result.err
        assert result.err.rstrip().endswith("go on all the same with --accept-data")
    assert len(events(run, "submitted")) == 1
    assert wait(run) == "FAILED"
    overlay = Path("jobs/paced.py")
    before = overlay.read_text()
    overlay.write_text(before + "# newer\n")
    try:
        told = again(hpcdl, "retry", run, "--accept-data").splitlines()
    finally:
        overlay.write_text(before)
    assert told[0].startswith("hpcdl: since changed was submitted: ")
    assert f"jobs/paced.py has changed; the run keeps its own copy, {run.absolute()}/code/paced.py" in told[0]
    assert told[1].endswith(f"the data set {Path('data2').absolute()} has changed")
    assert told[2:] == ["hpcdl: changed goes on from step 12"]
    assert wait(run) == "FAILED"  # 13 steps later, just as it was
    assert events(run, "started")[-1]["step"] == 12
    assert "failed after step 24: ArithmeticError" in log(run)
