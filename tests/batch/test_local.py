from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from hpcdl.batch.local import Local, process_start
from hpcdl.batch.queue import cancel_run, job_state, submit_run, wait_run
from hpcdl.newrun import write_run
from hpcdl.options import resolve_options
from hpcdl.rundir import RunDir
from hpcdl.spec import JobSpec
from tests.conftest import Hpcdl


def start(script: str, name: str = "job", time_limit: str = "10") -> RunDir:
    options = resolve_options({"time": time_limit})
    spec = JobSpec("preprocess", name, Path.cwd() / "runs" / name, options.cluster, options.resources)
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
