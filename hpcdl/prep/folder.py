"""The output folder: one run at a time, no left-overs of dead runs, and no mixture of two data sets."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep.plan import Plan
from hpcdl.shards.manifest import NAME as MANIFEST_NAME
from hpcdl.shards.writer import read_shard_header

LOCK_NAME = ".lock"
SHARD_PATTERN = re.compile(r"(train|val|test)-\d{5}\.h5")
_TEMPORARY_PATTERN = re.compile(r"\..+\.(\d+)\.tmp")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, making the folder when it is not there; left-overs of dead runs are removed first.

    Raises:
        UsageError: another run holds the folder, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _take_lock(folder)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}; choose another output folder") from None
    try:
        # Nobody else writes here now: what is temporary belonged to a run that died.
        _remove_temporaries(folder)
        yield
    finally:
        # Workers that were killed have left theirs.
        with contextlib.suppress(OSError):
            _remove_temporaries(folder)
        (folder / LOCK_NAME).unlink(missing_ok=True)


def _remove_temporaries(folder: Path) -> None:
    for path in folder.iterdir():
        if _TEMPORARY_PATTERN.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _take_lock(folder: Path) -> None:
    path = folder / LOCK_NAME
    text = json.dumps(_myself())
    guard = os.open(folder, os.O_RDONLY)
    try:
        # Two runs that find the same dead lock must not both take it over. Some network file systems have no flock;
        # there only this small window stays open.
        with contextlib.suppress(OSError):
            fcntl.flock(guard, fcntl.LOCK_EX)
        holder = _holder(path)
        if holder is not None and _is_dead(holder):
            path.unlink(missing_ok=True)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            who = holder or {}
            raise UsageError(
                f"{folder}: another run is writing here (host {who.get('host', '?')}, process {who.get('pid', '?')}, "
                f"job {who.get('job') or 'none'}); wait for it, or remove {path} when it is dead"
            ) from None
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
    finally:
        os.close(guard)


def _myself() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0") or 0),
    }


def _holder(path: Path) -> dict[str, Any] | None:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        # Written this instant, or cut short by a crash: not known to be dead.
        return {}
    return entries if isinstance(entries, dict) else {}


def _is_dead(holder: Mapping[str, Any]) -> bool:
    """Whether the holder is known to be gone: its process here has ended, or its job was requeued since."""
    me = _myself()
    if holder.get("job") and holder["job"] == me["job"] and holder.get("restart", 0) < me["restart"]:
        return True
    if holder.get("host") != me["host"] or not isinstance(holder.get("pid"), int):
        return False
    # A process id comes round again; the start time tells the new owner from the old.
    started = _start_time(holder["pid"])
    return started is None or started != holder.get("started")


def _start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process, None when there is no such process."""
    try:
        # The name, in brackets, may itself hold spaces and brackets; the start time is the 20th field after it.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def prepare(folder: Path, plan: Plan, overwrite: bool) -> dict[str, str]:
    """Make the folder ready for a plan's shards; call it with the lock held.

    Returns:
        sha256 by file name from a finished manifest of the same plan, empty when there is none.

    Raises:
        UsageError: the folder holds another data set, and `overwrite` is off.
        FailedError: the shards will not fit on the disk.
    """
    manifest = _read_manifest(folder / MANIFEST_NAME)
    if manifest is None:
        _remove_unfinished(folder, plan)
    elif manifest.get("plan") != plan.digest:
        if not overwrite:
            raise UsageError(
                f"{folder}: holds a data set made with other settings or sources; choose another folder, or replace it "
                "with --overwrite"
            )
        # The manifest goes first: without it nobody takes the rest for a data set.
        (folder / MANIFEST_NAME).unlink()
        for path in _shards(folder):
            path.unlink()
        manifest = None
    needed = sum(task.num_bytes for task in plan.shards if not (folder / f"{task.name}.h5").exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FailedError(
            f"{folder}: the shards need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; choose another one"
        )
    if manifest is None:
        return {}
    try:
        return {s["file"]: s["sha256"] for body in manifest["splits"].values() for s in body["shards"]}
    except (KeyError, TypeError, AttributeError):
        return {}


def _shards(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if SHARD_PATTERN.fullmatch(path.name)]


def _remove_unfinished(folder: Path, plan: Plan) -> None:
    """Remove another plan's shards from a folder without a manifest: the run that wrote them has failed or was ended."""
    others = [path for path in _shards(folder) if _plan_of(path) not in (plan.digest, None)]
    for path in others:
        path.unlink()
    if others:
        print(
            f"hpcdl: {folder}: removed {len(others)} shards of an unfinished run with other settings or sources",
            file=sys.stderr,
        )


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest, None when there is none; one that cannot be read counts as another data set's."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _plan_of(path: Path) -> str | None:
    """The plan a shard was made for, None for a file that is damaged (it will be written anew)."""
    try:
        return str(read_shard_header(path).attributes.get("plan", ""))
    except FailedError:
        return None
