from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from hpcdl.batch import local
from hpcdl.batch.local import Local, process_start
from hpcdl.batch.queue import cancel_run, job_state, may_be_active, submit_run, wait_run
from hpcdl.newrun import write_run
from hpcdl.options import resolve_options
from hpcdl.rundir import RunDir, write_lines
from hpcdl.spec import JobSpec
from tests.conftest import Hpcdl


def start(script: str, name: str = "job", time_limit: str = "10", kind: str = "preprocess") -> RunDir:
    options = resolve_options({"time": time_limit})
    spec = JobSpec(kind, name, Path.cwd() / "runs" / name, options.cluster, options.resources)
    run, undo = write_run(spec, "#!/bin/bash\n" + script, request={})
    submit_run(spec, run, undo)
    return run


def wait(run: RunDir) -> str:
    return wait_run(run, lambda info: None).state


def log(run: RunDir) -> str:
    return run.log(run.job_ids()[-1]).read_text()


def until(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_job_runs_detached_and_its_code_is_known(workdir: Path) -> None:
    run = start("echo out; echo err >&2; echo $HPCDL_JOB_ID; exit 7\n")
    assert wait(run) == "FAILED"
    info = job_state(run)
    assert info is not None
    assert info.exit_code == 7
    assert log(run) == f"out\nerr\n{info.job_id}\n"


def test_cancel_ends_every_process_of_the_job(workdir: Path) -> None:
    # A rank in a process group of its own, as mpirun makes them, that notes the signal.
    rank = "trap 'echo saved; exit 0' TERM; echo $$ > pid; while :; do sleep 0.05; done"
    run = start(f"setsid=$(true); set -m; bash -c {rank!r} & wait\n")
    until(run.path / "pid")
    info = job_state(run)
    assert info is not None
    assert info.state == "RUNNING"
    assert cancel_run(run) == info.job_id
    assert wait(run) == "CANCELLED"
    assert "saved" in log(run)
    assert process_start(int((run.path / "pid").read_text())) == ""


def test_the_time_limit_ends_a_job(workdir: Path) -> None:
    run = start("sleep 60\n", time_limit="0:01")
    assert wait(run) == "TIMEOUT"
    info = job_state(run)
    assert info is not None
    assert info.process_code() == 124


def test_a_job_outlives_its_supervisor_and_can_be_cancelled(workdir: Path) -> None:
    run = start("echo $$ > pid; sleep 60\n")
    until(run.path / "pid")
    pid = run.events()[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    info = job_state(run)
    assert info is not None
    assert (info.state, info.reason) == ("RUNNING", "without its supervising process, which was killed")
    cancel_run(run)
    end = time.monotonic() + 20
    while process_start(int((run.path / "pid").read_text())):
        assert time.monotonic() < end
        time.sleep(0.05)
    info = job_state(run)
    assert info is not None
    assert info.state == "NODE_FAIL"
    assert "supervising process is gone" in info.reason


REQUEUE = """requeue() { printf '{"event": "requeued", "job_id": "%s", "time": 1}\\n' "$HPCDL_JOB_ID" >> attempts.jsonl; exit 85; }
"""
"""What hpcdl.watch does when work is left."""


def running(run: RunDir) -> list[int]:
    return [event["restart"] for event in run.events() if event["event"] == "running"]


def test_a_job_that_asks_for_it_is_started_again(workdir: Path) -> None:
    run = start(REQUEUE + 'echo "$HPCDL_RESTART_COUNT"; [ "$HPCDL_RESTART_COUNT" = 2 ] || requeue\n')
    assert wait(run) == "COMPLETED"
    assert running(run) == [0, 1, 2]
    assert log(run) == "0\n1\n2\n"
    assert [event["event"] for event in run.events()].count("exited") == 1


def test_a_job_that_fails_without_asking_is_not_started_again(workdir: Path) -> None:
    run = start(REQUEUE + '[ "$HPCDL_RESTART_COUNT" = 0 ] && requeue; exit 85\n')
    assert wait(run) == "FAILED"
    assert running(run) == [0, 1]
    info = job_state(run)
    assert info is not None
    assert info.exit_code == 85


def test_a_cancelled_job_is_not_started_again(workdir: Path) -> None:
    run = start(REQUEUE + "trap requeue TERM; touch there; while :; do sleep 0.05; done\n", kind="train")
    until(run.path / "there")
    cancel_run(run)
    assert wait(run) == "CANCELLED"
    assert running(run) == [0]


def test_a_cancellation_between_two_starts(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []

    def once(run: RunDir, job_id: str, spec: object, restart: int, asked: list[int]) -> tuple[str, int]:
        starts.append(restart)
        run.record("requeued", job_id)
        asked.append(signal.SIGTERM)
        return "", 85

    run = start("exit 0\n")
    wait(run)
    monkeypatch.setattr(local, "_run_once", once)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert local.supervise(run, "local-later") == 85
    assert starts == [0]
    assert run.events()[-1]["state"] == "CANCELLED"


@pytest.mark.slow
def test_a_training_is_warned_before_its_walltime_ends(workdir: Path) -> None:
    script = "trap 'echo warned; exit 0' USR1; date +%s; echo ${HPCDL_END_TIME%.*}; while :; do sleep 0.05; done\n"
    run = start(script, time_limit="0:06", kind="train")
    assert wait(run) == "COMPLETED"
    began, end, warned = log(run).split()
    assert warned == "warned"
    assert 5 <= int(end) - int(began) <= 7
    other = start("trap 'echo warned' USR1; sleep 1.5\n", name="other", time_limit="0:02")
    assert wait(other) == "COMPLETED"
    assert log(other) == ""


@pytest.mark.slow
def test_a_training_that_stopped_too_late_goes_on_all_the_same(workdir: Path) -> None:
    run = start(
        REQUEUE + 'trap requeue TERM; trap : USR1; [ "$HPCDL_RESTART_COUNT" = 0 ] || exit 0; while :; do sleep 0.05; done\n',
        time_limit="0:02", kind="train",
    )  # fmt: skip
    assert wait(run) == "COMPLETED"
    assert running(run) == [0, 1]


@pytest.mark.parametrize(("kind", "heard"), [("train", {"leader"}), ("preprocess", {"child"})])
def test_who_is_asked_to_end(workdir: Path, kind: str, heard: set[str]) -> None:
    """A training's leader hands a stop on; a shell would leave its children without a chance."""
    child = "trap 'echo child; exit 0' TERM; touch there; while :; do sleep 0.05; done"
    run = start(f"trap 'echo leader; kill -9 $!; exit 0' TERM; bash -c {child!r} & wait\n", kind=kind)
    until(run.path / "there")
    os.kill(run.events()[0]["pid"], signal.SIGTERM)
    assert wait(run) == "CANCELLED"
    assert set(log(run).split()) & {"leader", "child"} == heard


def test_a_job_does_not_take_itself_for_the_allocation_it_was_submitted_in(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SLURM_JOB_ID": "9", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "PMIX_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    run = start('echo "${SLURM_JOB_ID:-${HPCDL_JOB_ID}}"; env | grep -E "^(SLURM|PMI)" || true\n')
    assert wait(run) == "COMPLETED"
    assert log(run) == f"{run.job_ids()[0]}\n"


def test_whether_a_job_may_be_active(workdir: Path) -> None:
    run = start("touch there; while [ ! -e go ]; do sleep 0.05; done\n")
    until(run.path / "there")
    job_id = run.job_ids()[0]
    assert may_be_active(run, job_id) is True
    (run.path / "go").touch()
    wait(run)
    assert may_be_active(run, job_id) is False
    assert may_be_active(run, "local-unknown") is None
    (event, *rest) = run.events()
    write_lines(run.attempts_file, [{**event, "host": "elsewhere"}, *rest])
    assert may_be_active(run, job_id) is None


def test_a_reused_process_id_is_not_the_job(workdir: Path) -> None:
    run = start("exit 0\n")
    wait(run)
    (event, *_) = run.events()
    run.attempts_file.write_text(json.dumps({**event, "pid": os.getpid(), "pid_start": "1"}) + "\n")
    assert Local().jobs([(run, event["job_id"])])[event["job_id"]].state == "NODE_FAIL"


def test_sbatch_options_mean_nothing_here(hpcdl: Hpcdl, workdir: Path) -> None:
    from tests.datasets import write_blobs

    write_blobs(Path("data"), {"train": 8})
    result = hpcdl("submit", "unet", "--data", "data", "--sbatch=--switches=1", "--set", "batch_size=4")
    assert result.code == 2
    assert "is for Slurm" in result.err
    assert not list(Path("runs").iterdir())


@pytest.mark.parametrize("command", ["cancel", "logs"])
def test_unknown_runs(hpcdl: Hpcdl, command: str) -> None:
    result = hpcdl(command, "nothing")
    assert result.code == 2
    assert "no run or job 'nothing'" in result.err
