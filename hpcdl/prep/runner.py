"""Run a plan: one Dask task a shard, each written beside its place and renamed into it, then the manifest.

So a run can be killed at any moment and run again: finished shards are kept, and the data set is the same whatever the
number of workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Client, as_completed

from hpcdl.errors import FailedError, HpcdlError, UsageError
from hpcdl.prep.cluster import Workers, join_launch
from hpcdl.prep.folder import locked, prepare
from hpcdl.prep.kinds import build_settings, load_kind
from hpcdl.prep.plan import SPLITS, Kind, Plan, ShardTask
from hpcdl.prep.progress import print_summary, progress
from hpcdl.prep.shard import Written, finish_shard, save_plan
from hpcdl.shards.manifest import build_manifest, save_manifest
from hpcdl.shards.writer import sync

# Failed shards that are named, with keep_going.
_MOST_TOLD = 20
# A shard that is being made when another one fails takes no longer than this.
_IDLE_SECONDS = 60


@dataclass(frozen=True)
class Request:
    """What `hpcdl preprocess` hands over, as JSON.

    Attributes:
        kind: a module of this package that has a `Settings` class.
        settings: values by name, as the command line gave them.
        out: the data set's folder.
        workers: processes on this machine, None for one a CPU.
        overwrite: replace another data set in `out`.
        keep_going: finish the other shards when one fails, instead of stopping there.
        command: the command line, for the manifest.
        quiet: no progress, no summary.
    """

    kind: str
    settings: Mapping[str, Any]
    out: str
    workers: int | None = None
    overwrite: bool = False
    keep_going: bool = False
    command: tuple[str, ...] = ()
    quiet: bool = False


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
        FailedError: a shard could not be written; those that were finished stay, and there is no manifest.
    """
    started = time.monotonic()
    out = Path(request.out).absolute()
    if request.workers is not None and request.workers < 1:
        raise UsageError(f"workers is {request.workers}; it must be at least 1")
    most = request.workers or len(os.sched_getaffinity(0))
    # Before workers are started beside it: OpenCV changes sys.path while it is imported, and new processes inherit that.
    kind = load_kind(request.kind)
    with join_launch(out) as joined, Workers(joined, most, functools.partial(load_kind, request.kind)) as workers:
        plan = kind.plan(build_settings(kind, request.kind, request.settings))
        with locked(out), _told_when_full(out):
            expected = prepare(out, plan, request.overwrite)
            shards = _write_all(workers.client(len(plan.shards)), request, plan, out, expected)
            manifest = _manifest(request, kind, plan, shards)
            path = save_manifest(out, manifest)
            sync(out)
        if not request.quiet:
            print_summary(out, shards, manifest["splits"], kind.summary(plan, manifest), time.monotonic() - started)
    return path


def _write_all(
    client: Client, request: Request, plan: Plan, folder: Path, expected: Mapping[str, str]
) -> dict[str, Written]:
    """All shards by name, in the plan's order."""
    # Each worker reads the plan, without the tasks, once; one that takes the place of a dead worker reads it as well.
    shared = save_plan(dataclasses.replace(plan, shards=()), folder)
    futures = {}
    for task in _dealt(plan.shards, len(client.scheduler_info(n_workers=-1)["workers"])):
        arguments = (request.kind, shared, task, folder, expected.get(f"{task.name}.h5"))
        futures[client.submit(finish_shard, *arguments, key=task.name, pure=False)] = task
    done: dict[str, Written] = {}
    failures: dict[str, HpcdlError] = {}
    with progress(len(futures), request.quiet) as advance:
        for future in as_completed(futures):
            task = futures[future]
            error = FailedError("it was given up") if future.cancelled() else future.exception()
            if error is None:
                done[task.name] = future.result()
                advance(done[task.name])
                continue
            failures[task.name] = _told(error, folder, task)
            if not request.keep_going:
                client.cancel(list(futures))
                _await_idle(client)
                raise failures[task.name]
    if failures:
        raise FailedError(_told_together([str(failures[task.name]) for task in plan.shards if task.name in failures]))
    return {task.name: done[task.name] for task in plan.shards}


@contextlib.contextmanager
def _told_when_full(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FailedError(
            f"{error.filename or out}: cannot be written: {error.strerror or error}; finished shards stay, so run the same "
            "command again"
        ) from None


def _await_idle(client: Client) -> None:
    """Wait a while for what is under way: the folder's lock must not go while a worker still writes there."""
    until = time.monotonic() + _IDLE_SECONDS
    while any(client.processing().values()) and time.monotonic() < until:
        time.sleep(0.05)


def _dealt(tasks: Sequence[ShardTask], num_workers: int) -> list[ShardTask]:
    """The tasks in an order in which workers that take one each in turn get a run of them.

    Shards that follow each other read neighbouring parts of the input, and what a worker has read is still in its cache.
    """
    size = -(-len(tasks) // max(1, num_workers))
    runs = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    return [task for row in itertools.zip_longest(*runs) for task in row if task is not None]


def _told(error: BaseException, folder: Path, task: ShardTask) -> HpcdlError:
    if isinstance(error, HpcdlError):
        return error
    told = FailedError(
        f"{folder / task.name}.h5 ({task.where}): the worker failed: {type(error).__name__}: "
        f"{' '.join(str(error).split())}; finished shards stay, so run the same command again"
    )
    told.__cause__ = error
    return told


def _told_together(messages: list[str]) -> str:
    more = [f"and {len(messages) - _MOST_TOLD} more"] if len(messages) > _MOST_TOLD else []
    lines = [*messages[:_MOST_TOLD], *more]
    return "\n  ".join(
        [
            f"{len(messages)} shards could not be made; all others are finished, the same command tries these again:",
            *lines,
        ]
    )


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
            raise FailedError(
                f"the {split} split is empty: all its {num_dropped} samples were dropped as not valid enough"
            )
        entries = [
            {
                "file": s.file,
                "num_samples": s.num_samples,
                "num_bytes": s.num_bytes,
                "sha256": s.sha256,
                "offsets": dict(s.offsets),
            }
            for s in members
        ]
        counts = plan.counts.get(split, {})
        splits[split] = {"num_samples": num_samples, "num_dropped": num_dropped, **counts, "shards": entries}
    return splits


def _manifest(request: Request, kind: Kind, plan: Plan, shards: Mapping[str, Written]) -> dict[str, Any]:
    extra = {
        **kind.manifest_entries(plan, {name: shard.attributes for name, shard in shards.items()}),
        "plan": plan.digest,
        "sources": [source.to_json() for source in plan.sources],
        "settings": dict(plan.settings),
        "command": list(request.command),
    }
    return build_manifest(request.kind, plan.fields, _splits(plan, shards), extra)
