"""The hidden folder beside the map in which its files grow: one a prediction, made before anything is computed."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from hpcdl.errors import FailedError
from hpcdl.predict.request import Job


def process_name() -> str:
    """This process among all that may write beside a map: host and process id."""
    return f"{platform.node()}-{os.getpid()}"


def make_work(job: Job) -> None:
    """Make the work folder, empty; those of this map whose processes on this host have died are removed.

    Raises:
        FailedError: the map's folder cannot be made, or cannot be written.
    """
    folder = job.out.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path == job.work or _is_dead(path, job.out.name):
                shutil.rmtree(path, ignore_errors=True)
        job.work.mkdir()
    except OSError as error:
        raise FailedError(f"{folder}: cannot be written: {error.strerror}; give another place with --out") from None


def _is_dead(path: Path, map_name: str) -> bool:
    """Whether it is a work folder of this map whose process was one of this host and is no more."""
    head, tail = f".{map_name}.{platform.node()}-", ".tmp"
    pid = path.name.removeprefix(head).removesuffix(tail)
    if path.name != f"{head}{pid}{tail}" or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
