"""Run folders in the making: a name, the folder with all that is submitted, and the same for a run that goes on."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from hpcdl.architecture import TRAIN_SETTINGS_FILE, load_architecture
from hpcdl.errors import UsageError
from hpcdl.options import Options, choose_comm, resolve_options
from hpcdl.rundir import RunDir
from hpcdl.settings import read_settings, resolve
from hpcdl.shards.manifest import NAME as MANIFEST
from hpcdl.snapshot import digest, write_snapshot
from hpcdl.spec import JobSpec

RUN_NAME = re.compile(r"[^\s/\\%\x00-\x1f\x7f.-][^/\\%\x00-\x1f\x7f]{0,199}")


CHANGEABLE = (
    "epochs", "max_steps", "stage", "log_every", "val_every", "precision", "compression", "accumulate", "on_nan",
    "checkpoint.epochs", "checkpoint.steps", "checkpoint.minutes", "checkpoint.keep", "checkpoint.keep_every",
    "checkpoint.asynchronous", "checkpoint.on_error", "best.min_delta", "best.patience",
    "optimizer.lr", "optimizer.weight_decay", "optimizer.clip_norm",
    "schedule.name", "schedule.warmup", "schedule.final",
)  # fmt: skip
"""Settings that a resumed run may have anew; the others would not fit its weights, its optimizer or its sample order."""


class NameTakenError(UsageError):
    """A run of that name came into being between the choice of the name and the making of the folder."""


def new_run(runs: Path, name: str | None, stem: str) -> tuple[str, Path]:
    """Name and folder of a new run; without a name, the stem with the next free number.

    Raises:
        UsageError: the name is taken, or cannot be a folder's.
    """
    runs = runs.expanduser().absolute()
    if name is None:
        number = 1
        while (runs / f"{stem}-{number:03d}").exists():
            number += 1
        name = f"{stem}-{number:03d}"
    elif not RUN_NAME.fullmatch(name):
        raise UsageError(
            f"run name {name!r}: a name has no slash, backslash, percent sign or control character and starts with a "
            "letter or digit"
        )
    elif (runs / name).exists():
        raise UsageError(
            f"run name {name!r} is taken: {runs / name} exists; choose another --name, or go on from it with `hpcdl resume {name}`"
        )
    return name, runs / name


def train_spec(
    architecture: str | None,
    data: str | None,
    name: str | None,
    settings: dict[str, str],
    sbatch: tuple[str, ...],
    options: Options,
) -> tuple[JobSpec, Path]:
    """The spec of a new training run, with its job file.

    Raises:
        UsageError: no architecture, or an unknown one, or an unknown setting.
    """
    if architecture is None:
        raise UsageError("which architecture? For example: hpcdl submit unet --data data/zion")
    chosen = load_architecture(architecture)
    values = chosen.resolve_settings(options.settings_layers(chosen.name, settings))
    run_name, run_dir = new_run(options.runs, name, chosen.name)
    request = {
        "architecture": chosen.name,
        "job": chosen.job_file.name,
        "comm": choose_comm(options.comm, options.resources),
        "data": {"path": str(Path(data).expanduser().absolute())} if data else None,
        "node_scratch": options.cluster.node_scratch,
        "settings": values,
    }
    return JobSpec("train", run_name, run_dir, options.cluster, options.resources, request, sbatch), chosen.job_file


def resume_spec(
    former: RunDir, flags: Mapping[str, Any], settings: Mapping[str, str], sbatch: tuple[str, ...]
) -> JobSpec:
    """The spec that goes on with a former run: what it was, with the resources and settings that are given anew.

    Raises:
        UsageError: not a training run, or an unknown setting or unusable resource.
    """
    old = former.spec()
    if old["kind"] != "train":
        raise UsageError(
            f"{former.name} is a {old['kind']} run; only training runs can be resumed, run the command again"
        )
    fixed = [name for name in settings if name not in CHANGEABLE]
    if fixed:
        raise UsageError(
            f"--set {fixed[0]}: a resumed run keeps it, because its checkpoint was made with it; changeable are: "
            f"{', '.join(CHANGEABLE)}. Start a new run for anything else"
        )
    # What it once waited for is over, and perhaps no longer known to Slurm.
    kept = {key: value for key, value in old["resources"].items() if value is not None and key != "dependency"}
    given = {key: value for key, value in flags.items() if value is not None}
    file = old.get("cluster_file", "")
    options = resolve_options({"cluster": file if Path(file).is_file() else old["cluster"], **kept, **given})
    job_file = former.code / old["job"]
    known = read_settings(job_file) | read_settings(TRAIN_SETTINGS_FILE, "TrainSettings")
    layers = [(str(former.spec_file), old["settings"]), ("--set", settings)]
    values = resolve(known, layers, accepted_by=f"{job_file.name} of run {former.name}")
    comm = given.get("comm") or ("auto" if old["comm"] == "single" else old["comm"])
    request = {
        "architecture": old["architecture"],
        "job": old["job"],
        "comm": "single" if options.resources.num_tasks == 1 else choose_comm(comm, options.resources),
        "data": old["data"],
        "settings": values,
        "code_sha256": old["code_sha256"],
    }
    more = sbatch or tuple(old["sbatch"])
    return JobSpec("train", former.name, former.path, options.cluster, options.resources, request, more)


def write_run(
    spec: JobSpec, script: str, job_file: Path | None = None, request: Mapping[str, Any] | None = None
) -> tuple[RunDir, Callable[[], None]]:
    """Make the run folder, whole or not at all; gives it with what removes it again.

    Args:
        job_file: of a training run; a copy is kept, and one of the data set's manifest.
        request: of any other run: what its module reads.

    Raises:
        NameTakenError: somebody else made it in the meantime.
        UsageError: the folder cannot be written.
    """
    run = RunDir(spec.run_dir)
    temporary = RunDir(spec.run_dir.with_name(f".{spec.run_dir.name}.{os.getpid()}.tmp"))
    try:
        temporary.path.parent.mkdir(parents=True, exist_ok=True)
        temporary.logs.mkdir(parents=True)
        _write_spec(temporary, spec, script, {"code_sha256": digest(job_file)} if job_file else {})
        write_snapshot(temporary.code, job_file)
        if job_file:
            shutil.copyfile(Path(spec.request["data"]["path"]) / MANIFEST, temporary.data_file)
        if request is not None:
            temporary.request_file.write_text(json.dumps(request, indent=1, ensure_ascii=False), encoding="utf-8")
        temporary.path.rename(run.path)
    except OSError as error:
        shutil.rmtree(temporary.path, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise NameTakenError(f"run name {run.name!r} was taken a moment ago: {run.path} exists") from None
        raise UsageError(f"{run.path}: cannot make the run folder: {error.strerror or error}") from None
    return run, lambda: shutil.rmtree(run.path)


def make_run(
    spec: JobSpec,
    render: Callable[[JobSpec], str],
    named: bool,
    job_file: Path | None = None,
    request: Mapping[str, Any] | None = None,
) -> tuple[JobSpec, RunDir, Callable[[], None]]:
    """`write_run`, with the next free number when somebody took a numbered name in the meantime.

    Args:
        render: the spec's script, which holds the run's path.
        named: whether the user chose the name.
    """
    while True:
        try:
            return spec, *write_run(spec, render(spec), job_file, request)
        except NameTakenError:
            if named:
                raise
            name, run_dir = new_run(spec.run_dir.parent, None, spec.name.rpartition("-")[0])
            spec = replace(spec, name=name, run_dir=run_dir)


def rewrite_run(run: RunDir, spec: JobSpec, script: str) -> tuple[RunDir, Callable[[], None]]:
    """Put a resumed run's spec and script in place; the former ones stay beside them as run.1.yaml, job.1.sbatch, ….

    Returns:
        The run and what takes the change back.
    """
    number = 1 + len(list(run.path.glob("run.*.yaml")))
    moves = [(path, path.with_name(f"{path.stem}.{number}{path.suffix}")) for path in (run.spec_file, run.script)]
    for path, kept in moves:
        shutil.copyfile(path, kept)
    manifest = run.data_file.read_bytes() if run.data_file.is_file() else None
    _write_spec(run, spec, script, {})
    shutil.copyfile(Path(spec.request["data"]["path"]) / MANIFEST, run.data_file)

    def undo() -> None:
        for path, kept in moves:
            kept.replace(path)
        if manifest is not None:
            run.data_file.write_bytes(manifest)

    return run, undo


def _write_spec(run: RunDir, spec: JobSpec, script: str, more: Mapping[str, Any]) -> None:
    text = yaml.safe_dump({**spec.document(), **more}, sort_keys=False, allow_unicode=True)
    for path, content in ((run.spec_file, text), (run.script, script)):
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
