"""What is checked before a job may queue: hours of waiting must not end in a message that the login node could have given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcdl.batch.queue import job_state
from hpcdl.errors import UsageError
from hpcdl.rundir import RunDir
from hpcdl.settings import read_needs
from hpcdl.shards.manifest import Manifest, Shard, load_manifest, verify_shard
from hpcdl.spec import JobSpec

VERIFIED = ".verified.json"
"""Beside the manifest: which shards were found good, by size and time of change, so that only the first submission hashes."""


def check_not_active(run: RunDir) -> None:
    """Raises UsageError while a job of this run waits or runs: two must never write one folder."""
    info = job_state(run)
    if info is not None and info.active:
        raise UsageError(
            f"{run.name}: its job {info.job_id} is still {info.state}; wait for it or `hpcdl cancel {run.name}`"
        )


def check_data(spec: JobSpec, job_file: Path, remember: bool = True, accept_changed: bool = False) -> JobSpec:
    """Check the data set of a training spec; gives the spec with the set's digest in it.

    Args:
        spec: a training spec with a data set.
        job_file: the job's code, which says what it needs of a data set.
        accept_changed: whether a run that goes on may do so on another data set than it began with.
        remember: whether to note good shards beside the manifest, where that folder can be written.

    Raises:
        UsageError: no manifest, not the fields the job needs, or too few samples for the ranks.
        FailedError: a shard is not what the manifest says.
    """
    entry: dict[str, Any] = dict(spec.request["data"])
    manifest = load_manifest(Path(entry["path"]))
    if entry.get("digest") not in (None, manifest.digest) and not accept_changed:
        raise UsageError(
            f"{manifest.folder}: is not the data set that run {spec.name} began with (digest {manifest.digest[:12]}, "
            f"then {entry['digest'][:12]}); start a new run, or go on all the same with --accept-data"
        )
    _check_fields(job_file, manifest)
    _check_batches(spec, manifest)
    _check_digests(manifest, remember)
    return replace(spec, request={**spec.request, "data": {**entry, "digest": manifest.digest}})


def _check_fields(job_file: Path, manifest: Manifest) -> None:
    missing = [name for name in read_needs(job_file) if name not in manifest.fields]
    if missing:
        raise UsageError(
            f"{manifest.folder}: a data set of kind {manifest.kind!r} has {', '.join(manifest.fields)}; "
            f"{job_file.name} needs {', '.join(missing)} as well"
        )


def _check_batches(spec: JobSpec, manifest: Manifest) -> None:
    ranks, settings = spec.resources.num_tasks, spec.request["settings"]
    samples, batch, accumulate = manifest.num_samples("train"), settings["batch_size"], settings["accumulate"]
    if samples < ranks:
        raise UsageError(
            f"{manifest.folder}: has {samples} training samples for {ranks} ranks; ask for fewer --nodes or "
            "--ntasks-per-node, or preprocess with a smaller --chip-px or --stride-px"
        )
    if batch % (ranks * accumulate):
        near = max(1, round(batch / (ranks * accumulate))) * ranks * accumulate
        raise UsageError(
            f"batch_size {batch} is of all ranks together and does not divide into {ranks} ranks × accumulate "
            f"{accumulate}; try --set batch_size={near}"
        )


def _check_digests(manifest: Manifest, remember: bool) -> None:
    path = manifest.folder / VERIFIED
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}

    def mark(shard: Shard) -> list[Any]:
        state = (manifest.folder / shard.file).stat()
        return [state.st_size, state.st_mtime_ns, state.st_ino, shard.sha256]

    shards = [shard for shards in manifest.splits.values() for shard in shards]
    todo = [
        shard for shard in shards if not (manifest.folder / shard.file).exists() or known.get(shard.file) != mark(shard)
    ]
    if not todo:
        return
    from rich.progress import Progress

    from hpcdl.console import err

    total = sum(shard.num_bytes for shard in todo)
    with Progress(console=err(), transient=True, disable=not err().is_terminal) as progress:
        task = progress.add_task("Checking digests", total=total)
        for shard in todo:
            verify_shard(manifest, shard)
            progress.advance(task, shard.num_bytes)
    if remember:
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps({shard.file: mark(shard) for shard in shards}), encoding="utf-8")
            temporary.replace(path)
        except OSError:
            return  # a shared, read-only data set: the next submission hashes again
