"""Every way in which a cluster interrupts a job, on the real Slurm: the run goes on and ends with the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import CHECKOUT, Cluster
from tests.cluster.test_main_job import give
from tests.faults.runs import beats, events, losses, newest_line, until, weights_digest, write_project

STEPS = 120
SPAN_S = 30
"""Within so long a job must have ended after one of its ranks did."""


@pytest.fixture(scope="module")
def project(cluster: Cluster) -> Iterator[Path]:
    folder = cluster.make_workdir("fault s'")
    write_project(folder)
    text = (cluster.checkout / "configs" / "clusters" / "testcluster.yaml").read_text()
    (folder / "hasty.yaml").write_text(text + "  HPCDL_STALL_TIMEOUT_S: 25\n")
    give(cluster, folder)
    yield folder
    cluster.remove_workdir(folder)


@pytest.fixture(scope="module")
def whole(cluster: Cluster, project: Path) -> Path:
    """The run that nothing happens to, on four nodes."""
    job_id, run = submit(cluster, project, "whole")
    assert cluster.wait_job(job_id, 120) == "COMPLETED"
    return run


def submit(cluster: Cluster, project: Path, name: str, *flags: str) -> tuple[str, Path]:
    command = ["submit", "paced", "--data", "data", "--nodes", "4", "--set", f"max_steps={STEPS}", "--name", name]
    done = json.loads(cluster.hpcdl(*command, *flags, "--json", cwd=project).stdout)
    return str(done["job_id"]), Path(done["run_dir"])


def log(run: Path) -> str:
    return "".join(path.read_text() for path in sorted((run / "logs").glob("*.out")))


def same(run: Path, whole: Path) -> bool:
    return weights_digest(run) == weights_digest(whole) and losses(run) == losses(whole)


def row(cluster: Cluster, project: Path, run: Path) -> dict[str, object]:
    (found,) = json.loads(cluster.hpcdl("status", run.name, "--json", cwd=project).stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.timeout(500)
def test_three_walltimes_and_one_submit(cluster: Cluster, project: Path, whole: Path) -> None:
    job_id, run = submit(cluster, project, "walltimes", "--set", "pause_s=0.9", "-t", "1")
    assert cluster.wait_job(job_id, 450) == "COMPLETED"
    assert same(run, whole)
    assert row(cluster, project, run)["attempts"] == len(events(run, "began")) >= 3
    assert all(event["failure"] is None for event in events(run, "closed"))
    text = cluster.hpcdl("logs", "walltimes", cwd=project).stdout
    assert text.count("resumed from step-") == text.count("stopped before its walltime ended; goes on from step") >= 2
    assert row(cluster, project, run)["state"] == "COMPLETED"
    states = [record["State"] for record in cluster.sacct(job_id, ["State"], duplicates=True)]
    assert "TIMEOUT" not in states


def test_preemption(cluster: Cluster, project: Path, whole: Path) -> None:
    job_id, run = submit(cluster, project, "preempted", "--partition", "preempt", "--set", "pause_s=0.05")
    until(lambda: newest_line(run) > 23)
    other = cluster.sbatch("sleep 3", "--nodes=4", "--exclusive", "--time=2")
    until(lambda: len(events(run, "began")) == 2, 90)
    assert cluster.wait_job(other) == "COMPLETED"
    assert cluster.wait_job(job_id, 120) == "COMPLETED"
    assert same(run, whole)


@pytest.mark.parametrize("node", ["n3", "n1"])
def test_a_node_dies(cluster: Cluster, project: Path, whole: Path, node: str) -> None:
    """slurmd and every process of a node; n1 is the one on which the batch process runs."""
    script = CHECKOUT / "scripts" / "cluster.sh"
    job_id, run = submit(cluster, project, f"without-{node}", "--set", "pause_s=0.05")
    until(lambda: newest_line(run) > 23)
    (lost,) = [rank for rank, beat in beats(run).items() if beat["host"] == node]
    attempt = run / "attempts" / events(run, "began")[0]["attempt"]
    subprocess.run([script, "kill-node", node], check=True, timeout=60)
    try:
        until((attempt / "failure.json").exists, 40)
        failure = json.loads((attempt / "failure.json").read_text())
        assert (failure["kind"], failure["rank"], failure["host"]) == ("node-lost", lost, node)
        # Slurm ends what is left of the step, and puts the job back in the queue once it has found the node dead.
        until(lambda: "R" not in cluster.admin(["squeue", "-h", f"-j{job_id}", "-o%t"]).stdout.split(), 60)
    finally:
        subprocess.run([script, "start-node", node], check=True, timeout=60)
    until(
        lambda: "PD" in cluster.admin(["squeue", "-h", f"-j{job_id}", "-o%t"]).stdout or len(events(run, "began")) > 1,
        60,
    )
    # Slurm lets a job that lost its first node wait for two minutes.
    cluster.admin(["scontrol", "update", f"JobId={job_id}", "StartTime=now"], check=False)
    assert cluster.wait_job(job_id, 150) == "COMPLETED"
    assert same(run, whole)
    if node != "n1":  # what n1 had still to say died with it
        assert f"rank {lost} of 4 on {node}" in log(run)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("raise", "ArithmeticError: this rank cannot go on"),
        ("oom", "killed by SIGKILL"),
        ("exit", "ended with code 3"),
    ],
)
def test_a_rank_dies(cluster: Cluster, project: Path, fault: str, told: str) -> None:
    job_id, run = submit(cluster, project, f"rank-{fault}", "--set", f"fail=2 30 {fault}")
    assert cluster.wait_job(job_id, 90) == "FAILED"
    (closed,) = events(run, "closed")
    (beat,) = [beat for rank, beat in beats(run).items() if rank == 2]
    lines = log(run).splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith("hpcdl: rank 2 of 4 on ")]
    assert f"on {beat['host']} failed after step 29: {told}" in lines[place]
    assert not any("srun:" in line or "MPI" in line for line in lines[:place])
    if fault == "raise":
        assert "Traceback" in lines[place + 1]
        assert log(run).count("Traceback") == 1
    assert closed["failure"]["rank"] == 2
    last = (run / "metrics.jsonl").stat().st_mtime
    assert closed["time"] - last < SPAN_S


def test_not_a_number(cluster: Cluster, project: Path) -> None:
    job_id, run = submit(cluster, project, "nan", "--set", "fail=2 30 nan")
    assert cluster.wait_job(job_id, 90) == "FAILED"
    assert "step 30: loss is nan on rank 2 (n" in log(run)
    assert newest_line(run) == 29


def test_a_rank_that_hangs_is_named(cluster: Cluster, project: Path) -> None:
    job_id, run = submit(cluster, project, "hang", "--set", "fail=1 30 hang", "--cluster", "hasty.yaml", "--no-requeue")
    assert cluster.wait_job(job_id, 120) == "FAILED"
    failure = events(run, "closed")[0]["failure"]
    assert (failure["kind"], failure["rank"]) == ("stalled", 1)


def test_a_second_job_is_refused(cluster: Cluster, project: Path, whole: Path) -> None:
    job_id, run = submit(cluster, project, "lock", "--set", "pause_s=0.15", "--nodes", "2", "--partition", "normal")
    until(lambda: newest_line(run) > 3)
    second = cluster.run(["sbatch", "--parsable", "--nodes=2", "job.sbatch"], cwd=run).stdout.strip()
    assert cluster.wait_job(second, 60) == "FAILED"
    (record,) = cluster.sacct(second, ["ExitCode"])
    assert record["ExitCode"] == "2:0"
    (line,) = [line for line in (run / "logs" / f"{second}.out").read_text().splitlines() if line.startswith("hpcdl:")]
    assert f"job {job_id} on n" in line
    assert "is writing this run" in line
    assert cluster.wait_job(job_id, 120) == "COMPLETED"


def test_rehearsal_on_the_nodes(cluster: Cluster, project: Path) -> None:
    command = ["rehearse", "paced", "--data", "data", "--nodes", "4", "--steps", "6", "--json"]
    done = json.loads(cluster.hpcdl(*command, cwd=project, timeout=200).stdout)
    assert done["measured"]["exact"] is True
    assert 0 < done["measured"]["step_s"] < 1
    assert done["measured"]["num_steps"] == 500
    assert done["forecast"]["node_hours"] == pytest.approx(4 * done["forecast"]["total_s"] / 3600)
    shown = cluster.hpcdl("rehearse", done["run"], cwd=project).stdout
    assert "the same weights, bit for bit" in shown


def test_a_killed_batch_process_and_a_killed_agent(cluster: Cluster, project: Path, whole: Path) -> None:
    job_id, run = submit(cluster, project, "killed", "--set", "pause_s=0.05")
    until(lambda: newest_line(run) > 23)
    for pattern in (f"hpcdl.watch.rank {run}", f"hpcdl.watch {run}"):
        began = time.monotonic()
        pids = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=True).stdout.split()
        os.kill(int(pids[-1]), signal.SIGKILL)
        cluster.wait_job(job_id, SPAN_S)
        assert time.monotonic() - began < SPAN_S
        # An attempt that was killed leaves its lock behind; the next one takes it over.
        assert (run / ".lock").exists() == (pattern == f"hpcdl.watch {run}")
        job_id = json.loads(cluster.hpcdl("retry", "killed", "--json", cwd=project).stdout)["job_id"]
        until(lambda: newest_line(run) > 50, 90)
    assert cluster.wait_job(job_id, 120) == "COMPLETED"
    assert same(run, whole)
