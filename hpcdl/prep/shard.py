"""What a worker does: write one shard beside its place and rename it into it, unless it is there already.

A worker has two threads, but one of them makes a shard at a time; the other meanwhile writes, digests and syncs its own.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pickle
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdl.errors import FailedError, HpcdlError
from hpcdl.prep.cluster import keep_memory
from hpcdl.prep.kinds import load_kind
from hpcdl.prep.plan import Plan, ShardTask
from hpcdl.shards.manifest import file_digest
from hpcdl.shards.writer import read_shard_header, sync, values_are_whole, write_shard_file

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


@dataclass(frozen=True)
class SavedPlan:
    """A plan's file and the digest of its contents."""

    path: Path
    sha256: str


def save_plan(plan: Plan, folder: Path) -> SavedPlan:
    """Write a plan where all workers see it, for as long as the folder is locked."""
    path = folder / f".plan.{os.getpid()}.tmp"
    data = pickle.dumps(plan)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(data)
    return SavedPlan(path, hashlib.sha256(data).hexdigest())


@functools.lru_cache(maxsize=1)
def _load_plan(saved: SavedPlan) -> Plan:
    keep_memory()  # once a process, with the first shard
    data = saved.path.read_bytes()
    # Others may be able to write in this folder, and unpickling runs code: only what this run has written.
    if hashlib.sha256(data).hexdigest() != saved.sha256:
        raise FailedError(f"{saved.path}: was changed by somebody else while this run works")
    plan: Plan = pickle.loads(data)  # noqa: S301
    return plan


def finish_shard(kind_name: str, saved: SavedPlan, task: ShardTask, folder: Path, expected: str | None) -> Written:
    """Keep the task's shard when it is there already, else write it; runs in a worker.

    Args:
        kind_name: the kind that made the plan.
        saved: the plan, as save_plan wrote it.
        task: one of its tasks.
        folder: the data set's folder.
        expected: sha256 that a finished manifest has for this file; a file that differs is written anew.

    Raises:
        FailedError: the shard cannot be made; names it, its part of the input and the cause.
    """
    plan = _load_plan(saved)
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
    written = _inspect(path, plan.digest, None, fresh=True)
    if written is None:
        raise FailedError(f"{path} ({task.where}): cannot be read back after writing; is the disk failing?")
    return dataclasses.replace(written, kept=False)


def _inspect(path: Path, digest: str, expected: str | None, fresh: bool = False) -> Written | None:
    """A finished shard of this plan, None when the file is missing, damaged, another plan's or not the expected one.

    Args:
        expected: the sha256 that a manifest has for it; without one its own check sums are compared.
        fresh: it was written just now.
    """
    if not path.is_file():
        return None
    try:
        # Its sha256 comes first: HDF5 may read a damaged file for ever.
        sha256 = file_digest(path)
        if expected not in (None, sha256):
            return None
        header = read_shard_header(path)
        if expected is None and not fresh and not values_are_whole(path, header):
            return None
    except (FailedError, OSError):
        return None
    if header.attributes.get("plan") != digest:
        return None
    size = path.stat().st_size
    return Written(path.name, header.num_samples, size, sha256, header.attributes, header.offsets, kept=True)
