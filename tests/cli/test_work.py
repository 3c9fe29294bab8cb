from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Hpcdl
from tests.generators import landcover_files


def flags(workdir: Path) -> list[str]:
    files = landcover_files(workdir / "my scene")
    return ["--images", *map(str, files.images), "--labels", str(files.labels), "--chip-px", "16", "--out", "data"]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (["--labels", "no.tif"], "no.tif: no such file"),
        (["--chip-px", "many"], "not a valid integer"),
        (["--grid", "both"], "one of labels, image"),
        (["--nodes", "2"], "cluster local is this one machine"),
    ],
)
def test_a_wrong_request_is_refused_before_it_queues(
    hpcdl: Hpcdl, workdir: Path, wrong: list[str], complaint: str
) -> None:
    result = hpcdl("preprocess", "landcover", *flags(workdir), "--ntasks-per-node", "1", *wrong)
    assert result.code == 2
    assert complaint in result.err
    assert not Path("runs").exists()


def test_a_flag_of_a_job_makes_a_job(hpcdl: Hpcdl, workdir: Path) -> None:
    result = hpcdl("preprocess", "landcover", *flags(workdir), "--wait", "--name", "prep")
    assert result.code == 0, result.err
    assert Path("runs/prep/request.json").is_file()
    assert Path("data/manifest.json").is_file()
    assert "unknown cluster 'nosuch'" in hpcdl("preprocess", "landcover", *flags(workdir), "--cluster", "nosuch").err


def test_ending_the_command_ends_its_work(workdir: Path) -> None:
    command = [sys.executable, "-m", "hpcdl", "preprocess", "landcover", *flags(workdir)]
    started = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    lock_seen = time.monotonic() + 30
    while not Path("data").exists():
        assert time.monotonic() < lock_seen
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=30) != 0
    end = time.monotonic() + 15
    while any(os.getsid(int(p.name)) == started.pid for p in Path("/proc").glob("[0-9]*") if alive(p)):
        assert time.monotonic() < end
        time.sleep(0.1)


def alive(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_predict_without_a_checkpoint(hpcdl: Hpcdl, workdir: Path) -> None:
    (workdir / "runs" / "x").mkdir(parents=True)
    (workdir / "runs" / "x" / "run.yaml").write_text("kind: train\n")
    image = landcover_files(workdir / "my scene").images[0]
    result = hpcdl("predict", "x", "--images", image, "--out", "map.tif", "--nodes", "1")
    assert result.code == 2
    assert "has no checkpoint yet" in result.err
