"""resume, retry, logs and status of runs whose jobs are events only: nothing is trained here."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpcdl.batch.local import process_start
from hpcdl.batch.preflight import check_data
from hpcdl.batch.script import render
from hpcdl.newrun import train_spec, write_run
from hpcdl.options import resolve_options
from hpcdl.rundir import RunDir
from tests.conftest import Hpcdl
from tests.datasets import write_blobs

LOST = {"kind": "node-lost", "rank": 3, "host": "n3", "step": 20, "line": "no sign of life"}


def make(data: Path, architecture: str = "unet", **options: Any) -> RunDir:
    """A run folder as `hpcdl submit` makes it."""
    settings = {"width": "2", "depth": "1", "batch_size": "4"}
    spec, job_file = train_spec(architecture, str(data), "x", settings, (), resolve_options(options))
    spec = check_data(spec, job_file)
    return write_run(spec, render(spec), job_file)[0]


def add_job(run: RunDir, job_id: str, state: str = "FAILED", log: str = "") -> None:
    """A local job that has ended, or that this process stands for."""
    pid = os.getpid() if state == "RUNNING" else 1
    details = {"pid": pid, "pid_start": process_start(pid) if pid != 1 else "0", "host": socket.gethostname()}
    run.record("submitted", job_id, **details)
    if log:
        run.log(job_id).write_text(log)
    if state != "RUNNING":
        run.record("exited", job_id, state=state, exit_code=0 if state == "COMPLETED" else 1)


def add_checkpoint(run: RunDir, step: int) -> None:
    (run.checkpoints / f"step-{step:08d}").mkdir(parents=True)


def directives(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH --")]
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_retry_of_a_run_that_ended_well(hpcdl: Hpcdl, data: Path) -> None:
    run = make(data)
    add_job(run, "local-1", "COMPLETED")
    result = hpcdl("retry", "x")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "x: ended well; there is nothing to retry. `hpcdl resume x --set epochs=…` trains on" in result.err


@pytest.mark.parametrize("command", ["resume", "retry"])
def test_a_run_whose_job_is_active(hpcdl: Hpcdl, data: Path, command: str) -> None:
    run = make(data)
    add_job(run, "local-1", "RUNNING")
    result = hpcdl(command, "x")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "x: its job local-1 is still RUNNING; wait for it or `hpcdl cancel x`" in result.err
    assert not list(run.path.glob("run.*.yaml"))


@pytest.mark.parametrize("command", ["resume", "retry"])
def test_a_run_that_is_not_a_training(hpcdl: Hpcdl, workdir: Path, command: str) -> None:
    folder = workdir / "runs" / "x"
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text("kind: predict\nresources: {time: '1'}\n")
    add_job(RunDir(folder), "local-1", "COMPLETED")  # also one that ended well is not told to train on
    result = hpcdl(command, "x")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "x is a predict run; only training runs can be resumed" in result.err
    assert "no run or job 'y'" in hpcdl(command, "y").err


def test_retry_tells_what_has_changed_and_from_where_it_goes_on(hpcdl: Hpcdl, data: Path, workdir: Path) -> None:
    (workdir / "jobs").mkdir()
    (workdir / "configs" / "architectures").mkdir(parents=True)
    (workdir / "configs" / "architectures" / "mine.yaml").write_text("job: mine.py\n")
    from hpcdl.catalog import bundled_root

    shutil.copyfile(bundled_root() / "jobs" / "unet.py", workdir / "jobs" / "mine.py")
    run = make(data, "mine")
    add_job(run, "local-1")
    result = hpcdl("retry", "x", "--dry-run")
    assert (result.code, result.err) == (0, "hpcdl: x begins anew: it has no checkpoint\n")
    assert result.out == run.script.read_text()

    add_checkpoint(run, 20)
    packages = run.code / "env.txt"
    packages.write_text(packages.read_text().replace("\nnumpy==", "\nnumpy==0."))
    with (workdir / "jobs" / "mine.py").open("a") as file:
        file.write("# newer\n")
    lines = hpcdl("retry", "x", "--dry-run").err.splitlines()
    assert lines[0].startswith("hpcdl: since x was submitted: numpy: 0.")
    assert lines[1].endswith(f"jobs/mine.py has changed; the run keeps its own copy, {run.code}/mine.py")
    assert lines[2:] == ["hpcdl: x goes on from step 20"]

    shutil.rmtree(workdir / "jobs")
    (workdir / "configs" / "architectures" / "mine.yaml").unlink()
    assert "no architecture mine is found from here; the run keeps its own copy" in hpcdl("retry", "x", "--dry-run").err
    assert not list(run.path.glob("run.*.yaml"))


@pytest.mark.parametrize("command", ["resume", "retry"])
def test_a_data_set_that_has_changed_or_is_gone(hpcdl: Hpcdl, data: Path, command: str) -> None:
    run = make(data)
    add_job(run, "local-1")
    shutil.rmtree(data)
    result = hpcdl(command, "x")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "the data set does not exist" in result.err
    write_blobs(data, {"train": 8, "val": 4}, seed=1)
    result = hpcdl(command, "x", "--dry-run")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "is not the data set that run x began with" in result.err
    accepted = hpcdl(command, "x", "--accept-data", "--dry-run")
    assert accepted.code == 0, accepted.err
    assert ("has changed" in accepted.err) == (command == "retry")


def test_resume_keeps_what_it_was_and_takes_what_is_new(hpcdl: Hpcdl, data: Path) -> None:
    run = make(data, cluster="testcluster", nodes=2, time="5", signal="USR1@40", max_requeues=3, mem="1G")
    was = directives(run.script.read_text())
    assert directives(hpcdl("resume", "x", "--dry-run").out) == was
    new = directives(hpcdl("resume", "x", "--nodes", "4", "--time", "9", "--dry-run").out)
    assert new == {**was, "nodes": "4", "ntasks": "4", "time": "00:09:00"}
    assert "--no-requeue" in hpcdl("resume", "x", "--no-requeue", "--dry-run").out
    result = hpcdl("resume", "x", "--set", "width=4", "--dry-run")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "--set width: a resumed run keeps it" in result.err


def test_runs_keep_away_from_nodes_that_failed_twice(hpcdl: Hpcdl, data: Path) -> None:
    run = make(data, cluster="testcluster", nodes=2, exclude="n4")
    for job_id in ("77", "78"):
        assert directives(hpcdl("resume", "x", "--dry-run").out)["exclude"] == "n4"
        run.record("closed", job_id, failure=LOST, from_step=0, to_step=5)
    result = hpcdl("resume", "x", "--dry-run")
    assert directives(result.out)["exclude"] == "n4,n3"
    assert "hpcdl: keeps away from n3 (--exclude), where x failed twice or more\n" in result.err
    result = hpcdl("resume", "x", "--exclude", "n3", "--dry-run")
    assert (directives(result.out)["exclude"], result.err) == ("n3", "")
    result = hpcdl("resume", "x", "--cluster", "local", "--nodes", "1", "--dry-run")
    assert "keeps away" not in result.err


def test_a_refused_submission_leaves_the_run_as_it_was(
    hpcdl: Hpcdl, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid account' >&2\nexit 1\n")
    (fake / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    run = make(data, cluster="testcluster")
    write_blobs(data, {"train": 12, "val": 4}, seed=1)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    result = hpcdl("resume", "x", "--time", "9", "--accept-data")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "invalid account" in result.err
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    (fake / "sbatch").write_text("#!/bin/sh\necho 99\n")
    assert hpcdl("resume", "x", "--time", "9", "--accept-data").code == 0
    assert yaml.safe_load(run.spec_file.read_text())["resources"]["time"] == "9"
    assert yaml.safe_load((run.path / "run.1.yaml").read_text())["resources"]["time"] == "00:10:00"
    assert run.data_file.read_bytes() == (data / "manifest.json").read_bytes()
    assert run.job_ids() == ["99"]


def test_logs_are_one_stream(hpcdl: Hpcdl, data: Path) -> None:
    run = make(data)
    assert "no log yet" in hpcdl("logs", "x").err
    add_job(run, "local-1", log="one\ntwo\n")
    add_job(run, "local-2")  # cancelled before it began
    add_job(run, "local-3", log="three\nünï\n")
    assert hpcdl("logs", "x").out == "one\ntwo\nthree\nünï\n"
    assert hpcdl("logs", "x", "-n", "3").out == "two\nthree\nünï\n"
    assert hpcdl("logs", "local-1").out == "one\ntwo\n"
    assert hpcdl("logs", "x", "-f").out == "one\ntwo\nthree\nünï\n"
    answer = json.loads(hpcdl("logs", "x", "--json").out)
    assert answer["lines"] == ["one", "two", "three", "ünï"]
    assert [Path(file).name for file in answer["files"]] == ["local-1.out", "local-3.out"]


def test_status_shows_one_run_with_all_its_attempts(hpcdl: Hpcdl, data: Path) -> None:
    run = make(data)

    def attempts() -> int:
        (row,) = json.loads(hpcdl("status", "--json").out)
        return int(row["attempts"])

    assert attempts() == 0
    add_job(run, "local-1")
    assert attempts() == 1  # it waits, or never came so far
    for restart in range(3):
        run.record("began", "local-1", attempt=f"local-1-{restart}")
        assert attempts() == restart + 1
    add_job(run, "local-2")
    assert attempts() == 4
    run.record("began", "local-2", attempt="local-2-0")
    assert attempts() == 4
