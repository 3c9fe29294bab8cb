"""The test cluster behaves as a site's Slurm does, in all that hpcdl relies on."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Cluster


def test_srun_reaches_four_nodes_and_each_has_its_own_tmp(cluster: Cluster) -> None:
    script = 'echo mine > "/tmp/$SLURM_JOB_ID-$(hostname)"; hostname; ls /tmp | grep "^$SLURM_JOB_ID-"'

    out = cluster.run(["srun", "-N4", "-n4", "--label", "bash", "-c", script]).stdout

    tasks: dict[str, list[str]] = {}
    for line in out.splitlines():
        rank, _, word = line.partition(": ")
        tasks.setdefault(rank, []).append(word)
    assert sorted(host for host, *_ in tasks.values()) == ["n1", "n2", "n3", "n4"]
    for host, *files in tasks.values():
        assert len(files) == 1
        assert files[0].endswith(f"-{host}")


def test_users_see_the_checkout_on_nodes_and_not_each_others_homes(cluster: Cluster) -> None:
    python = cluster.checkout / ".venv" / "bin" / "python"

    found = cluster.run(["srun", "-N1", python, "-c", "import hpcdl; print(hpcdl.__file__)"]).stdout.strip()
    home = cluster.run(["ls", cluster.state / "home" / "hpcuser1"], user="hpcuser2", check=False)

    assert found == str(cluster.checkout / "hpcdl" / "__init__.py")
    assert home.returncode != 0


def test_sacct_knows_job_and_account(cluster: Cluster) -> None:
    job = cluster.sbatch("srun hostname", "-N2", "-J", "named", "-o", "%j.out")

    assert cluster.wait_job(job) == "COMPLETED"
    [record] = cluster.sacct(job, ["JobName", "User", "Account", "Partition", "QOS", "AllocNodes", "ExitCode"])
    assert record == {
        "JobName": "named",
        "User": "hpcuser1",
        "Account": "hpcdl_test",
        "Partition": "normal",
        "QOS": "normal",
        "AllocNodes": "2",
        "ExitCode": "0:0",
    }
    assert len((cluster.workdir / f"{job}.out").read_text().split()) == 2
    assert [step["JobID"] for step in cluster.sacct(job, ["JobID"], steps=True)] == [
        f"{job}",
        f"{job}.batch",
        f"{job}.0",
    ]


def test_preempted_job_is_requeued_and_comes_back(cluster: Cluster) -> None:
    victim = cluster.sbatch(
        'echo "run ${SLURM_RESTART_COUNT:-0}"; [[ ${SLURM_RESTART_COUNT:-0} -gt 0 ]] || exec sleep 100',
        *("-p", "preempt", "-w", "n4", "--open-mode=append", "-o", "victim.out"),
    )
    cluster.wait_state(victim, "RUNNING")

    winner = cluster.sbatch("sleep 1", "-p", "normal", "-w", "n4", "--exclusive")

    assert cluster.wait_job(winner) == "COMPLETED"
    assert cluster.wait_job(victim) == "COMPLETED"
    assert (cluster.workdir / "victim.out").read_text().splitlines()[-1] == "run 1"
    runs = cluster.sacct(victim, ["State", "NodeList"], duplicates=True)
    assert [run["State"] for run in runs] == ["PREEMPTED", "COMPLETED"]


def test_reservation_runs_its_job_and_keeps_nobody_out(cluster: Cluster) -> None:
    reserved = cluster.sbatch("sleep 2", f"--reservation={cluster.reservation}", "-N1")
    cluster.wait_state(reserved, "RUNNING")

    cluster.run(["srun", "-N4", "-n4", "true"])

    assert cluster.wait_job(reserved) == "COMPLETED"
    assert cluster.sacct(reserved, ["Reservation"]) == [{"Reservation": cluster.reservation}]


def test_unknown_reservation_is_refused(cluster: Cluster) -> None:
    done = cluster.run(["sbatch", "--reservation=nobodys", "--wrap=true"], check=False)

    assert done.returncode == 1
    assert "Requested reservation is invalid" in done.stderr


def test_second_user_cannot_cancel_a_job_of_the_first(cluster: Cluster) -> None:
    job = cluster.sbatch("sleep 60")

    done = cluster.run(["scancel", str(job)], user="hpcuser2", check=False)

    assert "Access/permission denied" in done.stderr
    cluster.wait_state(job, "RUNNING")
    cluster.run(["scancel", str(job)])
    assert cluster.wait_job(job) == "CANCELLED"


def test_quality_of_service_refuses_too_long_a_job(cluster: Cluster) -> None:
    done = cluster.run(["sbatch", "-q", "short", "-t", "40", "--wrap=true"], check=False)

    assert done.returncode == 1
    assert "QOSMaxWallDurationPerJobLimit" in done.stderr
    assert "Job violates accounting/QOS policy" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("horovod") is None, reason="Horovod is not installed in .venv")
def test_horovod_sums_over_four_nodes(cluster: Cluster) -> None:
    (cluster.workdir / "ranks.py").write_text(
        "import torch\n"
        "import horovod.torch as hvd\n"
        "hvd.init()\n"
        "total = hvd.allreduce(torch.tensor([float(hvd.rank())]), op=hvd.Sum).item()\n"
        "print(hvd.rank(), hvd.size(), total)\n"
    )
    python = cluster.checkout / ".venv" / "bin" / "python"

    # --kill-on-bad-exit: without it, ranks that wait for one that has died wait for ever.
    srun = ["srun", "-N4", "-n4", "--mpi=pmix", "--kill-on-bad-exit=1", "--export=ALL,OMPI_MCA_mpi_yield_when_idle=1"]
    out = cluster.run([*srun, python, "ranks.py"], timeout=120).stdout

    assert sorted(out.splitlines()) == ["0 4 6.0", "1 4 6.0", "2 4 6.0", "3 4 6.0"]
