"""The options of a command after all layers: command line, environment, files, cluster profile."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdl.cluster import Cluster, load_cluster
from hpcdl.config import Layer, user_layers
from hpcdl.errors import UsageError
from hpcdl.resources import Resources
from hpcdl.settings import Setting, read_settings, resolve

RESOURCE_SETTINGS: dict[str, Setting] = read_settings(Path(__file__).parent / "resources.py", "Resources")


OTHER_OPTIONS = {"cluster", "runs", "comm"}


COMMUNICATORS = ("auto", "horovod", "torch", "single")


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
