"""The main job on the real Slurm, as an ordinary user: scene → shards on a Dask cluster of the nodes → four Horovod ranks → map."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import rasterio

from tests.cluster.conftest import Cluster
from tests.datasets import write_blobs
from tests.generators import landcover_files

TINY = ["--set", "width=2", "--set", "depth=1", "--set", "norm=none", "--set", "batch_size=4", "--set", "log_every=1"]


def give(cluster: Cluster, folder: Path) -> None:
    """Let the ordinary user own what root wrote."""
    for path in [folder, *folder.rglob("*")]:
        shutil.chown(path, "hpcuser1", "hpcuser1")


@pytest.fixture(scope="module")
def project(cluster: Cluster) -> Iterator[Path]:
    """A user's folder with a scene and a data set that the four nodes have made of it."""
    folder = cluster.make_workdir("it's $(a) próject")
    files = landcover_files(folder / "my scene")
    give(cluster, folder)
    cluster.hpcdl(
        "preprocess", "landcover", "--images", *files.images, "--labels", files.labels, "--chip-px", "16",
        "--out", "data/four", "--nodes", "4", "--wait", "--name", "prep", cwd=folder, timeout=180,
    )  # fmt: skip
    yield folder
    cluster.remove_workdir(folder)


def rows(cluster: Cluster, folder: Path, *names: str) -> list[dict[str, object]]:
    answer: list[dict[str, object]] = json.loads(cluster.hpcdl("status", *names, "--json", cwd=folder).stdout)
    return answer


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["split"] == "train"]


def test_four_nodes_make_the_same_shards_as_one_process(cluster: Cluster, project: Path) -> None:
    (prep,) = rows(cluster, project, "prep")
    assert prep["state"] == "COMPLETED"
    files = landcover_files(project / "again")
    give(cluster, project / "again")
    cluster.hpcdl(
        "preprocess", "landcover", "--images", *files.images, "--labels", files.labels, "--chip-px", "16",
        "--out", "data/one", "--workers", "1", cwd=project, timeout=120,
    )  # fmt: skip
    four, one = (json.loads((project / "data" / name / "manifest.json").read_text()) for name in ("four", "one"))
    assert four["digest"] == one["digest"]


def test_four_ranks_train_as_one_and_the_map_is_drawn(cluster: Cluster, project: Path) -> None:
    common = ["submit", "unet", "--data", "data/four", *TINY, "--set", "epochs=2"]
    four_nodes = ["--nodes", "4", "--stage", "--name", "fo'ur $(x)", "--json"]
    submitted = json.loads(cluster.hpcdl(*common, *four_nodes, cwd=project).stdout)
    cluster.hpcdl(*common, "--name", "one", "--cluster", "local", "--wait", cwd=project, timeout=180)
    assert cluster.wait_job(submitted["job_id"], timeout=180) == "COMPLETED"
    run = Path(submitted["run_dir"])

    (row,) = rows(cluster, project, submitted["job_id"])
    (record,) = cluster.sacct(submitted["job_id"], ["State", "NNodes", "Account", "JobName"])
    assert (row["state"], row["run"]) == ("COMPLETED", "fo'ur $(x)")
    assert (record["State"], record["NNodes"], record["Account"]) == ("COMPLETED", "4", cluster.account)
    assert cluster.admin(["sacct", "-X", "-n", "-P", "-o", "NodeList", "-j", submitted["job_id"]]).stdout == "n[1-4]\n"

    four, one = losses(run), losses(project / "runs" / "one")
    assert len(four) == len(one) > 4
    assert four == pytest.approx(one, rel=1e-4)

    log = cluster.hpcdl("logs", run.name, cwd=project).stdout
    assert "4 ranks (horovod)" in log
    # Each node has a /tmp of its own: four copies, each read once, and training went on as on the shared file system.
    splits = json.loads((project / "data" / "four" / "manifest.json").read_text())["splits"]
    used = sum(shard["num_bytes"] for split in ("train", "val") for shard in splits[split]["shards"])
    assert re.search(rf"staged to /tmp/hpcdl-stage-\S+: {4 * used / 1e6:.1f} MB read for 4 node\(s\)", log), log[:2000]
    cluster.hpcdl(
        "predict", run.name, "--images", *sorted((project / "my scene").glob("band_b*.tif")), "--out", "map one.tif",
        cwd=project, timeout=120,
    )  # fmt: skip
    cluster.hpcdl(
        "predict", run.name, "--images", *sorted((project / "my scene").glob("band_b*.tif")), "--out", "map two.tif",
        "--nodes", "2", "--wait", cwd=project, timeout=180,
    )  # fmt: skip
    with rasterio.open(project / "map one.tif") as a, rasterio.open(project / "map two.tif") as b:
        assert (a.read(1) == b.read(1)).all()
        assert a.transform == b.transform


def test_torch_distributed_across_nodes(cluster: Cluster, project: Path) -> None:
    cluster.hpcdl(
        "submit", "unet", "--data", "data/four", *TINY, "--set", "max_steps=3", "--nodes", "2", "--comm", "torch",
        "--name", "torch", "--wait", cwd=project, timeout=180,
    )  # fmt: skip
    assert len(losses(project / "runs" / "torch")) == 3


def test_mpirun_as_the_launcher(cluster: Cluster, project: Path) -> None:
    """A launcher is data: the same cluster with one line changed."""
    profile = (cluster.checkout / "configs" / "clusters" / "testcluster.yaml").read_text().splitlines()
    lines = ["launcher: mpirun -n {tasks} --bind-to none" if line.startswith("launcher:") else line for line in profile]
    (project / "mpirun.yaml").write_text("\n".join(lines) + "\n")
    cluster.hpcdl(
        "submit", "unet", "--data", "data/four", *TINY, "--set", "max_steps=3", "--nodes", "2", "--cluster", "mpirun.yaml",
        "--name", "mpirun", "--wait", cwd=project, timeout=180,
    )  # fmt: skip
    assert len(losses(project / "runs" / "mpirun")) == 3
    assert "2 ranks (horovod)" in cluster.hpcdl("logs", "mpirun", cwd=project).stdout


def test_cancel_and_resume(cluster: Cluster) -> None:
    write_blobs(cluster.workdir / "data", {"train": 16})
    give(cluster, cluster.workdir)
    flags = [*TINY, "--set", "epochs=100000", "--set", "checkpoint.epochs=0", "--set", "val_every=0"]
    started = json.loads(
        cluster.hpcdl("submit", "unet", "--data", "data", *flags, "--name", "long", "--nodes", "2", "--json").stdout
    )
    metrics = Path(started["run_dir"]) / "metrics.jsonl"
    cluster.wait_state(started["job_id"], "RUNNING")
    assert _until_lines(metrics, 5)
    refused = cluster.hpcdl("resume", "long", check=False)
    assert refused.returncode == 2
    assert "is still RUNNING" in refused.stderr
    cluster.hpcdl("cancel", "long")
    assert cluster.wait_job(started["job_id"]) == "CANCELLED"
    steps = max(json.loads(line)["step"] for line in metrics.read_text().splitlines())
    log = cluster.hpcdl("logs", "long").stdout
    assert f"stopped at step {steps}" in log, log
    cluster.hpcdl(
        "resume", "long", "--nodes", "1", "--set", f"max_steps={steps + 3}", "--wait", timeout=180
    )  # fmt: skip
    log = cluster.hpcdl("logs", "long").stdout
    assert f"resumed from step-{steps:08d}" in log
    assert f"done: {steps + 3} steps" in log


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--qos", "nosuch"], "sbatch refused"),
        (["--reservation", "nosuch"], "sbatch refused"),
        (["--account", "nosuch"], "sbatch refused"),
        (["--sbatch=--no-such-option"], "sbatch refused"),
    ],
)
def test_what_slurm_refuses_is_shown_and_leaves_nothing(cluster: Cluster, flags: list[str], complaint: str) -> None:
    write_blobs(cluster.workdir / "data", {"train": 8})
    give(cluster, cluster.workdir)
    done = cluster.hpcdl("submit", "unet", "--data", "data", "--set", "batch_size=4", *flags, check=False)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list((cluster.workdir / "runs").iterdir())


def test_reservation_qos_and_passed_on_options_reach_slurm(cluster: Cluster) -> None:
    write_blobs(cluster.workdir / "data", {"train": 8})
    give(cluster, cluster.workdir)
    flags = ["--reservation", cluster.reservation, "--qos", "short", '--sbatch=--comment="it\'s mine"', "-t", "2"]
    done = cluster.hpcdl("submit", "unet", "--data", "data", *TINY, *flags, "--set", "max_steps=1", "--json")
    job_id = json.loads(done.stdout)["job_id"]
    (record,) = cluster.sacct(job_id, ["QOS", "Reservation", "TimelimitRaw"])
    assert (record["QOS"], record["TimelimitRaw"]) == ("short", "2")
    assert cluster.wait_job(job_id, timeout=120) == "COMPLETED"
    (record,) = cluster.sacct(job_id, ["Reservation", "Comment"])
    assert record["Reservation"] == cluster.reservation


def _until_lines(path: Path, number: int) -> bool:
    import time

    end = time.monotonic() + 90
    while time.monotonic() < end:
        if path.is_file() and len(path.read_text().splitlines()) >= number:
            return True
        time.sleep(0.2)
    return False
