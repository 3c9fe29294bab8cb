"""What a worker does: write one shard beside its place and rename it into it, unless it is there already.

A worker has two threads, but one of them makes a shard at a time; the other meanwhile writes, digests and syncs its own.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pickle
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdl.errors import FailedError, HpcdlError
from hpcdl.prep.kinds import load_kind
from hpcdl.prep.plan import Plan, ShardTask
from hpcdl.shards.manifest import file_digest
from hpcdl.shards.writer import read_shard_header, sync, write_shard_file

_MAKING = threading.Lock()


@dataclass(frozen=True)
class Written:
    """A shard on disk; `kept` when an earlier run had finished it."""

    file: str
    num_samples: int
    num_bytes: int
    sha256: str
    attributes: Mapping[str, Any]
    offsets: Mapping[str, int]
    kept: bool


def save_plan(plan: Plan, folder: Path) -> Path:
    """Write a plan where all workers see it, for as long as the folder is locked."""
    path = folder / f".plan.{os.getpid()}.tmp"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        pickle.dump(plan, file)
    return path


@functools.lru_cache(maxsize=1)
def _load_plan(path: Path) -> Plan:
    # Only this run's own file, which nobody else may write.
    plan: Plan = pickle.loads(path.read_bytes())  # noqa: S301
    return plan


def finish_shard(kind_name: str, plan_file: Path, task: ShardTask, folder: Path, expected: str | None) -> Written:
    """Keep the task's shard when it is there already, else write it; runs in a worker.

    Args:
        kind_name: the kind that made the plan.
        plan_file: the plan, as save_plan writes it.
        task: one of its tasks.
        folder: the data set's folder.
        expected: sha256 that a finished manifest has for this file; a file that differs is written anew.

    Raises:
        FailedError: the shard cannot be made; names it, its part of the input and the cause.
    """
    plan = _load_plan(plan_file)
    path = folder / f"{task.name}.h5"
    found = _inspect(path, plan.digest, expected)
    if found is not None:
        return found
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        with _MAKING:
            content = load_kind(kind_name).make_shard(plan, task)
        own = {"plan": plan.digest, "split": task.split, "num_dropped": content.num_dropped}
        write_shard_file(temporary, content.fields, {**own, **content.attributes})
        del content
        temporary.replace(path)
        sync(folder)
    except HpcdlError as error:
        raise FailedError(f"{path} ({task.where}): {error}") from None
    except OSError as error:
        raise FailedError(f"{path} ({task.where}): cannot be written: {' '.join(str(error).split())}") from None
    finally:
        temporary.unlink(missing_ok=True)
    written = _inspect(path, plan.digest, None)
    if written is None:
        raise FailedError(f"{path} ({task.where}): cannot be read back after writing; is the disk failing?")
    return dataclasses.replace(written, kept=False)


def _inspect(path: Path, digest: str, expected: str | None) -> Written | None:
    """A finished shard of this plan, None when the file is missing, damaged, another plan's or not the expected one."""
    if not path.is_file():
        return None
    try:
        # Its sha256 comes first: HDF5 may read a damaged file for ever.
        sha256 = file_digest(path)
        if expected not in (None, sha256):
            return None
        header = read_shard_header(path)
    except (FailedError, OSError):
        return None
    if header.attributes.get("plan") != digest:
        return None
    size = path.stat().st_size
    return Written(path.name, header.num_samples, size, sha256, header.attributes, header.offsets, kept=True)
