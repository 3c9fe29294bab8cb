"""JobSpec: one job, fully resolved. Made once on the login node, written to run.yaml, read by the job; never changed."""

from __future__ import annotations

import datetime
import errno
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from hpcdl import __version__
from hpcdl.catalog import find_config, find_job
from hpcdl.cluster import Cluster, load_cluster
from hpcdl.config import Document, Layer, flatten, load_yaml, user_layers
from hpcdl.errors import UsageError
from hpcdl.resources import Resources
from hpcdl.rundir import RunDir
from hpcdl.settings import Setting, read_settings, resolve
from hpcdl.shards.manifest import NAME as MANIFEST
from hpcdl.snapshot import digest, write_snapshot

RESOURCE_SETTINGS: dict[str, Setting] = read_settings(Path(__file__).parent / "resources.py", "Resources")
TRAIN_SETTINGS_FILE = Path(__file__).parent / "train" / "settings.py"
OTHER_OPTIONS = {"cluster", "runs", "comm"}
COMMUNICATORS = ("auto", "horovod", "torch", "single")
RUN_NAME = re.compile(r"[^\s/\\%\x00-\x1f\x7f.-][^/\\%\x00-\x1f\x7f]{0,199}")
CHANGEABLE = (
    "epochs", "max_steps", "log_every", "val_every", "checkpoint_every", "keep", "precision", "compression", "accumulate",
    "optimizer.lr", "optimizer.weight_decay", "optimizer.clip_norm",
    "schedule.name", "schedule.warmup", "schedule.final",
)  # fmt: skip
"""Settings that a resumed run may have anew; the others would not fit its weights, its optimizer or its sample order."""

FIXED_SBATCH = (
    "array",
    "a",
    "wait",
    "W",
    "test-only",
    "output",
    "o",
    "error",
    "e",
    "chdir",
    "D",
    "parsable",
    "wrap",
    "open-mode",
)
"""sbatch options that would break what hpcdl relies on: one job, its log, its folder, the answer of sbatch."""


class NameTakenError(UsageError):
    """A run of that name came into being between the choice of the name and the making of the folder."""


@dataclass(frozen=True)
class JobSpec:
    """One job.

    Attributes:
        kind: "train", "preprocess" or "predict": the template's and the module's name.
        request: what the module of that kind reads, plain values only.
        sbatch: further sbatch arguments, passed on as they are.
    """

    kind: str
    name: str
    run_dir: Path
    cluster: Cluster
    resources: Resources
    request: Mapping[str, Any] = field(default_factory=dict)
    sbatch: tuple[str, ...] = ()
    python: str = sys.executable

    def document(self) -> dict[str, Any]:
        """The mapping that run.yaml holds."""
        return {
            "hpcdl": __version__,
            "kind": self.kind,
            "name": self.name,
            "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "cluster": self.cluster.name,
            "cluster_file": str(self.cluster.document.path),
            "scheduler": self.cluster.scheduler,
            "resources": asdict(self.resources),
            "sbatch": list(self.sbatch),
            "python": self.python,
            **self.request,
        }


@dataclass(frozen=True)
class Architecture:
    """configs/architectures/<name>.yaml: the job file it names (default: its own stem) and its default settings."""

    name: str
    document: Document
    job_file: Path

    def known_settings(self) -> dict[str, Setting]:
        """The job's own settings, then those of the training loop.

        Raises:
            UsageError: the job file defines a setting that the loop has already.
        """
        own, shared = read_settings(self.job_file), read_settings(TRAIN_SETTINGS_FILE, "TrainSettings")
        for name in own:
            if name in shared:
                raise UsageError(f"{self.job_file}: the setting {name!r} belongs to the training loop; rename it")
        return own | shared

    def resolve_settings(self, layers: list[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
        """Values of all settings: defaults, then this file's, then the layers in turn."""
        settings = flatten(self.document.section("settings"))
        # One layer a setting, so that a wrong one is named with its own line.
        mine = [(self.document.where(f"settings.{name}"), {name: value}) for name, value in settings.items()]
        return resolve(self.known_settings(), [*mine, *layers], accepted_by=f"jobs/{self.job_file.name}")


def load_architecture(name: str) -> Architecture:
    """The architecture of that name, or of that .yaml file.

    Raises:
        UsageError: no such architecture, an unknown key, or no such job file.
    """
    document = load_yaml(find_config("architectures", name))
    document.only({"job", "description", "settings"})
    job = str(document.values.get("job", document.path.stem))
    return Architecture(document.path.stem, document, find_job(job, wanted_by=document.path))


@dataclass(frozen=True)
class Options:
    """The options of one command after all layers: what a spec is made from."""

    cluster: Cluster
    resources: Resources
    runs: Path
    comm: str
    layers: Sequence[Layer]

    def settings_layers(self, architecture: str, given: Mapping[str, str]) -> list[tuple[str, Mapping[str, Any]]]:
        """Settings for one architecture, lowest precedence first: the files', then what --set gave."""
        found: list[tuple[str, Mapping[str, Any]]] = []
        for layer in reversed(self.layers):
            found += layer.placed(layer.settings, "settings.")
            found += layer.placed(layer.architectures.get(architecture, {}), f"architectures.{architecture}.")
        return [*found, ("--set", given)]


def resolve_options(flags: Mapping[str, Any]) -> Options:
    """Lay command line, environment, files and cluster profile over each other.

    Args:
        flags: options given on the command line by Python name; None is 'not given'.

    Raises:
        UsageError: unknown or unusable values, named with the place they come from; more than the cluster has.
    """
    known = set(RESOURCE_SETTINGS) | OTHER_OPTIONS
    given = Layer("option {name}", {key: value for key, value in flags.items() if value is not None and key in known})
    layers = [given, *user_layers(known)]

    def first(name: str, default: str) -> str:
        return next((str(layer.values[name]) for layer in layers if name in layer.values), default)

    cluster = load_cluster(first("cluster", "local"))
    comm = first("comm", "auto")
    if comm not in COMMUNICATORS:
        raise UsageError(f"--comm {comm!r} is not one of {', '.join(COMMUNICATORS)}")
    ordered: list[tuple[str, Mapping[str, Any]]] = [
        (cluster.document.where(f"defaults.{name}"), {name: value}) for name, value in cluster.defaults.items()
    ]
    for layer in reversed(layers):
        ordered += layer.placed({key: value for key, value in layer.values.items() if key not in OTHER_OPTIONS})
    if cluster.scheduler == "local":
        asked = first("ntasks_per_node", str(cluster.defaults.get("ntasks_per_node", 1)))
        tasks = int(asked) if asked.isdecimal() else 1  # what is no number is refused below, with its place
        ordered.insert(0, ("this machine's cores", {"cpus_per_task": max(1, (os.cpu_count() or 1) // max(1, tasks))}))
    resources = Resources(**resolve(RESOURCE_SETTINGS, ordered, accepted_by="hpcdl submit"))
    try:
        resources.validate()
    except ValueError as error:
        raise UsageError(f"{error}; see `hpcdl submit --help`") from None
    cluster.check(resources)
    return Options(cluster, resources, Path(first("runs", "runs")), comm, layers)


def runs_folder(flag: str | None) -> Path:
    """The folder of runs: the flag's, else HPCDL_RUNS or a file's, else runs/."""
    known = set(RESOURCE_SETTINGS) | OTHER_OPTIONS
    places = [flag, *(layer.values.get("runs") for layer in user_layers(known)), "runs"]
    return Path(str(next(place for place in places if place is not None))).expanduser()


def sbatch_arguments(options: Sequence[str] | None) -> tuple[str, ...]:
    """The words of --sbatch options.

    Raises:
        UsageError: quotes that do not close, or an option that hpcdl sets itself.
    """
    words: list[str] = []
    for option in options or ():
        try:
            words += shlex.split(option)
        except ValueError as error:
            raise UsageError(f"--sbatch {option!r}: {error}") from None
    for word in words:
        name = re.sub(r"=.*", "", word).lstrip("-") if word.startswith("--") else word[1:2]
        if word.startswith("-") and name in FIXED_SBATCH:
            raise UsageError(f"--sbatch {word!r}: hpcdl sets this itself, or cannot follow such a job; leave it out")
    return tuple(words)


def choose_comm(comm: str, resources: Resources) -> str:
    """The communicator of a job: `auto` is Horovod from two ranks on.

    Raises:
        UsageError: several ranks without a communicator.
    """
    if comm == "auto":
        return "horovod" if resources.num_tasks > 1 else "single"
    if comm == "single" and resources.num_tasks > 1:
        raise UsageError(f"--comm single is for one rank, asked for {resources.num_tasks}; use horovod or torch")
    return comm


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
            f"run name {name!r} is taken: {runs / name} exists; choose another --name, or go on from it with --resume {name}"
        )
    return name, runs / name


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
    kept = {key: value for key, value in old["resources"].items() if value is not None}
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
    _write_spec(run, spec, script, {})

    def undo() -> None:
        for path, kept in moves:
            kept.replace(path)

    return run, undo


def _write_spec(run: RunDir, spec: JobSpec, script: str, more: Mapping[str, Any]) -> None:
    text = yaml.safe_dump({**spec.document(), **more}, sort_keys=False, allow_unicode=True)
    for path, content in ((run.spec_file, text), (run.script, script)):
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
