from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpcdl.errors import FailedError
from hpcdl.predict.request import open_job, read_request
from hpcdl.predict.work import make_work, process_name
from tests.predict.conftest import Case


def leave(folder: Path, owner: str) -> Path:
    """The work folder that somebody's prediction of map.tif has."""
    path = folder / f".map.tif.{owner}.tmp"
    path.mkdir(parents=True)
    (path / "map.tif").write_text("half")
    return path


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_work_of_dead_processes_of_this_host_goes(make_case: Callable[..., Case]) -> None:
    case = make_case()
    out, host = case.folder / "out", platform.node()
    dead = leave(out, f"{host}-{dead_pid()}")
    kept = [
        leave(out, f"{host}-{os.getppid()}"),
        leave(out, f"elsewhere-{dead_pid()}"),
        leave(out, f"{host}-x"),
        leave(out, f"{host}-"),
    ]
    code, _, err = case.predict()
    assert (code, err) == (0, "")
    assert not dead.exists()
    assert all((path / "map.tif").read_text() == "half" for path in kept)
    assert sorted(out.glob(".*")) == sorted(kept)
    assert np.array_equal(case.map(), case.expected())


def test_two_predictions_of_one_map_do_not_share_a_folder(make_case: Callable[..., Case]) -> None:
    case = make_case()
    request = read_request(case.request())
    first, second = (open_job(request, owner) for owner in (process_name(), f"{platform.node()}-{os.getppid()}"))
    for job in (first, second):
        make_work(job)
    assert first.work != second.work
    assert first.work.is_dir()
    assert second.work.is_dir()


def test_a_second_try_of_the_same_process_starts_empty(make_case: Callable[..., Case]) -> None:
    case = make_case()
    job = open_job(read_request(case.request()), process_name())
    make_work(job)
    (job.work / "map.tif").write_text("half")
    make_work(job)
    assert list(job.work.iterdir()) == []
    job.work.rmdir()
    job.work.write_text("")
    with pytest.raises(FailedError, match="out: cannot be written"):
        make_work(job)
