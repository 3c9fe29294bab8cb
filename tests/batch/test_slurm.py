"""What is asked of Slurm from within a job, with commands that only pretend."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcdl.batch.queue import end_time, may_be_active, requeue
from hpcdl.errors import FailedError
from hpcdl.rundir import RunDir

Fake = Callable[[str, str], None]
QUEUED = "echo '77|RUNNING|None|n1|1|normal|me|0:10|10:00|2026-11-20T10:00:00'"
ENDED = "echo '77|FAILED|1:0|n1|1|normal|me|00:10|10:00|2026-11-20T10:00:00|2026-11-20T10:00:10|None'"
FAILS = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Put a command on PATH, as lines of sh."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(name: str, lines: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / name).chmod(0o755)

    write("squeue", "exit 0")
    write("sacct", "exit 0")
    return write


@pytest.mark.parametrize(
    ("command", "lines", "active"),
    [
        ("squeue", QUEUED, True),
        ("sacct", ENDED, False),
        ("sacct", "exit 0", None),
        ("squeue", FAILS, None),
        ("sacct", FAILS, None),
    ],
)
def test_whether_a_job_may_be_active(fake: Fake, tmp_path: Path, command: str, lines: str, active: bool | None) -> None:
    fake(command, lines)
    assert may_be_active(RunDir(tmp_path), "77") is active


def test_a_job_of_no_scheduler(fake: Fake, tmp_path: Path) -> None:
    fake("squeue", "touch asked; exit 0")
    assert may_be_active(RunDir(tmp_path), "by-hand-host-12") is None
    assert end_time("by-hand-host-12") is None
    assert not Path("asked").exists()


def test_the_end_of_the_walltime(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    end = datetime.datetime.now().replace(microsecond=0) + datetime.timedelta(minutes=3)
    fake("squeue", f"echo {end.isoformat()}")
    assert end_time("77") == end.timestamp()
    for answer in ("echo N/A", "exit 0", FAILS):
        fake("squeue", answer)
        assert end_time("77") is None
    monkeypatch.delenv("HPCDL_END_TIME", raising=False)
    assert end_time("local-1") is None
    monkeypatch.setenv("HPCDL_END_TIME", "12.5")
    assert end_time("local-1") == 12.5


def test_putting_a_job_back_in_the_queue(fake: Fake, tmp_path: Path) -> None:
    fake("scontrol", f"echo \"$@\" >> '{tmp_path}/said'")
    fake("squeue", QUEUED.replace("RUNNING", "COMPLETING"))
    requeue("77")  # Slurm is ending it, or has requeued it after a node was lost
    requeue("local-1")
    assert not (tmp_path / "said").exists()
    fake("squeue", QUEUED)
    requeue("77")
    assert (tmp_path / "said").read_text() == "requeue 77\n"
    fake("scontrol", "echo 'Requested operation is presently disabled' >&2; exit 1")
    with pytest.raises(FailedError, match="presently disabled"):
        requeue("77")
