"""Run a plan: one Dask task a shard, each written beside its place and renamed into it, then the manifest.

So a run can be killed at any moment and run again: finished shards are kept, and the data set is the same whatever the
number of workers.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from distributed import Client, as_completed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hpcdl import settings as setting_files
from hpcdl.errors import FailedError, HpcdlError, UsageError
from hpcdl.prep.cluster import connect
from hpcdl.prep.folder import locked, prepare
from hpcdl.prep.plan import SPLITS, Kind, Plan, ShardTask
from hpcdl.shards.manifest import build_manifest, file_digest, save_manifest
from hpcdl.shards.writer import read_shard_attributes, sync


@dataclass(frozen=True)
class Request:
    """What `hpcdl preprocess` hands over, as JSON.

    Attributes:
        kind: a module of this package that has a `Settings` class.
        settings: values by name, as the command line gave them.
        out: the data set's folder.
        workers: processes on this machine, None for one a CPU.
        overwrite: replace another data set in `out`.
        command: the command line, for the manifest.
        quiet: no progress, no summary.
    """

    kind: str
    settings: Mapping[str, Any]
    out: str
    workers: int | None = None
    overwrite: bool = False
    command: tuple[str, ...] = ()
    quiet: bool = False


@dataclass(frozen=True)
class Written:
    """A shard on disk; `kept` when an earlier run had finished it."""

    file: str
    num_samples: int
    num_bytes: int
    sha256: str
    attributes: Mapping[str, Any]
    kept: bool


def read_request(path: Path) -> Request:
    """The request in a JSON file.

    Raises:
        UsageError: not readable, or with other keys than Request has.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        return Request(**{**body, "command": tuple(body.get("command", ()))})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not a request for preprocessing: {error}") from None


def run(request: Request) -> Path:
    """Make the data set of a request; returns its manifest's path.

    Raises:
        UsageError: settings or inputs are not usable, or `out` holds something else.
        FailedError: a shard could not be written; those that were finished stay.
    """
    started = time.monotonic()
    out = Path(request.out).absolute()
    workers = request.workers or len(os.sched_getaffinity(0))
    if workers < 0:
        raise UsageError(f"workers is {workers}; it must be at least 1")
    kind = load_kind(request.kind)
    with connect(workers, out) as client, locked(out):
        plan = kind.plan(build_settings(kind, request.kind, request.settings))
        expected = prepare(out, plan, request.overwrite)
        shards = _write_all(client, request, plan, out, expected)
        splits = _splits(plan, shards)
        attributes = {name: shard.attributes for name, shard in shards.items()}
        own = kind.manifest_entries(plan, attributes)
        extra = {
            **own,
            "plan": plan.digest,
            "sources": [source.to_json() for source in plan.sources],
            "settings": dict(plan.settings),
            "command": list(request.command),
        }
        manifest = build_manifest(request.kind, plan.fields, splits, extra)
        path = save_manifest(out, manifest)
        sync(out)
        if not request.quiet:
            _print_summary(out, shards, splits, kind.summary(plan, manifest), time.monotonic() - started)
    return path


def load_kind(name: str) -> Kind:
    """The module of an input kind.

    Raises:
        UsageError: no such kind; lists them.
    """
    if name not in kinds():
        raise UsageError(f"unknown kind of input {name!r}; known: {', '.join(kinds())}")
    return cast(Kind, importlib.import_module(f"hpcdl.prep.{name}"))


def kinds() -> list[str]:
    """Names of the modules of this package that have a Settings class, found without importing them."""
    files = sorted(Path(__file__).parent.glob("[a-z]*.py"))
    return [path.stem for path in files if "\nclass Settings:" in path.read_text(encoding="utf-8")]


def build_settings(kind: Kind, name: str, values: Mapping[str, Any]) -> Any:
    """The kind's Settings from plain values, checked against its fields.

    Raises:
        UsageError: an unknown name, a value that does not fit, or a required one missing.
    """
    known = setting_files.read_settings(Path(__file__).with_name(f"{name}.py"))
    # Lists keep their items: text would be cut at commas, which a file name may hold.
    layer = {key: [value] if known.get(key) and known[key].many and isinstance(value, str) else value for key, value in values.items()}
    resolved = setting_files.resolve(known, [("the request", layer)], f"hpcdl preprocess {name}")
    return setting_files.build(kind.Settings, resolved)


def finish_shard(kind_name: str, plan: Plan, task: ShardTask, folder: Path, expected: str | None) -> Written:
    """Keep the task's shard when it is there already, else write it; runs in a worker.

    Args:
        kind_name: the kind that made the plan.
        plan: the plan.
        task: one of its tasks.
        folder: the data set's folder.
        expected: sha256 that a finished manifest has for this file; a file that differs is written anew.

    Raises:
        FailedError: the shard cannot be made; names it, its part of the input and the cause.
    """
    path = folder / f"{task.name}.h5"
    found = _inspect(path, plan.digest)
    if found is not None and expected in (None, found.sha256):
        return found
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        load_kind(kind_name).write_shard(plan, task, temporary)
        temporary.replace(path)
        sync(folder)
    except HpcdlError as error:
        raise FailedError(f"{path} ({task.where}): {error}") from None
    except OSError as error:
        raise FailedError(f"{path} ({task.where}): cannot be written: {' '.join(str(error).split())}") from None
    finally:
        temporary.unlink(missing_ok=True)
    written = _inspect(path, plan.digest)
    if written is None:
        raise FailedError(f"{path} ({task.where}): cannot be read back after writing; is the disk failing?")
    return dataclasses.replace(written, kept=False)


def _inspect(path: Path, digest: str) -> Written | None:
    """A finished shard of this plan, None when the file is missing, damaged or another plan's."""
    if not path.is_file():
        return None
    try:
        num_samples, attributes = read_shard_attributes(path)
    except FailedError:
        return None
    if attributes.get("plan") != digest:
        return None
    return Written(path.name, num_samples, path.stat().st_size, file_digest(path), attributes, kept=True)


def _write_all(
    client: Client, request: Request, plan: Plan, folder: Path, expected: Mapping[str, str]
) -> dict[str, Written]:
    """All shards by name, in the plan's order."""
    # The plan travels once to each worker, without the tasks, and keeps its files open there from task to task.
    shared = client.scatter(dataclasses.replace(plan, shards=()), broadcast=True, hash=False)
    futures = {}
    for task in plan.shards:
        arguments = (request.kind, shared, task, folder, expected.get(f"{task.name}.h5"))
        futures[client.submit(finish_shard, *arguments, key=task.name, pure=False)] = task
    done: dict[str, Written] = {}
    with _progress(len(futures), request.quiet) as advance:
        for future in as_completed(futures):
            task = futures[future]
            error = future.exception()
            if error is not None:
                client.cancel(list(futures))
                if isinstance(error, HpcdlError):
                    raise error
                raise FailedError(
                    f"{folder / task.name}.h5 ({task.where}): the worker failed: {type(error).__name__}: "
                    f"{' '.join(str(error).split())}; finished shards stay, so run the same command again"
                ) from error
            done[task.name] = future.result()
            advance(done[task.name])
    return {task.name: done[task.name] for task in plan.shards}


def _splits(plan: Plan, shards: Mapping[str, Written]) -> dict[str, Any]:
    """The manifest's `splits`."""
    splits: dict[str, Any] = {}
    for split in SPLITS:
        members = [shards[task.name] for task in plan.shards if task.split == split]
        if not members:
            continue
        num_samples = sum(shard.num_samples for shard in members)
        num_dropped = sum(int(shard.attributes.get("num_dropped", 0)) for shard in members)
        if num_samples == 0:
            raise FailedError(f"the {split} split is empty: all its {num_dropped} samples were dropped as not valid enough")
        entries = [
            {"file": s.file, "num_samples": s.num_samples, "num_bytes": s.num_bytes, "sha256": s.sha256} for s in members
        ]
        counts = plan.counts.get(split, {})
        splits[split] = {"num_samples": num_samples, "num_dropped": num_dropped, **counts, "shards": entries}
    return splits
