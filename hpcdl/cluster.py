"""Cluster profiles, configs/clusters/*.yaml: everything that differs from site to site, and the check of a request against it."""

from __future__ import annotations

import re
import shlex
import string
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hpcdl.catalog import find_config
from hpcdl.config import Document, load_yaml
from hpcdl.errors import UsageError, suggestion
from hpcdl.resources import Resources, parse_time, time_text

LAUNCHER_FIELDS = {"nodes", "tasks", "tasks_per_node", "cpus_per_task"}
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""Of an environment variable; the script writes it without quotes."""


@dataclass(frozen=True)
class Partition:
    """Limits of one partition; None is 'not limited or not known'."""

    max_nodes: int | None = None
    max_time: str | None = None
    cpus_per_node: int | None = None
    gpus_per_node: int | None = None
    memory_gb: int | None = None


@dataclass(frozen=True)
class Cluster:
    """A cluster profile.

    Attributes:
        scheduler: "slurm" or "local".
        launcher: what starts the ranks, before the Python command; {tasks}, {nodes}, {tasks_per_node} and
            {cpus_per_task} are replaced. A single task starts without it on the local scheduler.
        defaults: option values of the lowest precedence.
        required: options that the site insists on.
        omit: options that the site's sbatch refuses, and that the script therefore leaves out.
        environment: variables for the job.
        prologue: shell lines before the launch, such as `module load …`.
        node_scratch: folder on a node's own disk, with variables that are filled in there; $TMPDIR, or /tmp, when None.
    """

    name: str
    document: Document
    description: str = ""
    scheduler: str = "slurm"
    launcher: str = "srun --mpi=pmix"
    partitions: Mapping[str, Partition] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    omit: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    prologue: tuple[str, ...] = ()
    node_scratch: str | None = None

    def launch_words(self, resources: Resources) -> list[str]:
        """The launcher with its numbers filled in, as words."""
        numbers = {
            "nodes": resources.nodes,
            "tasks": resources.num_tasks,
            "tasks_per_node": resources.ntasks_per_node,
            "cpus_per_task": resources.cpus_per_task,
        }
        if self.scheduler == "local" and resources.num_tasks == 1:
            return []
        return [word.format(**numbers) for word in shlex.split(self.launcher)]

    def check(self, resources: Resources) -> None:
        """Refuse what this cluster cannot give.

        Raises:
            UsageError: a required option is missing, an unknown partition, or more than the partition has.
        """
        for name in self.required:
            if not getattr(resources, name):
                flag = "--" + name.replace("_", "-")
                raise UsageError(
                    f"cluster {self.name} needs {flag}; give the flag, or set {name} in hpcdl.yaml or "
                    "~/.config/hpcdl/config.yaml"
                )
        if self.scheduler == "local" and resources.nodes > 1:
            raise UsageError(
                f"cluster {self.name} is this one machine, asked for {resources.nodes} nodes; use --ntasks-per-node for "
                "more ranks here, or --cluster for a Slurm cluster"
            )
        if not self.partitions:
            return
        if resources.partition is None:
            raise UsageError(f"cluster {self.name} needs -p/--partition; it has: {', '.join(self.partitions)}")
        for name in resources.partition.split(","):
            if name not in self.partitions:
                raise UsageError(
                    f"cluster {self.name} has no partition {name!r}; it has: {', '.join(self.partitions)}."
                    f"{suggestion(name, self.partitions)}"
                )
            self._check_partition(name, resources)

    def _check_partition(self, name: str, wanted: Resources) -> None:
        limits = self.partitions[name]
        asked = [
            ("nodes", wanted.nodes, limits.max_nodes, "lower -N/--nodes"),
            (
                "CPUs a node",
                wanted.ntasks_per_node * wanted.cpus_per_task,
                limits.cpus_per_node,
                f"lower --ntasks-per-node ({wanted.ntasks_per_node}) or --cpus-per-task ({wanted.cpus_per_task})",
            ),
            ("GPUs a node", wanted.gpus_per_node, limits.gpus_per_node, "lower --gpus-per-node"),
            ("GB of memory a node", -(-wanted.memory_mb // 1024), limits.memory_gb, "lower --mem"),
        ]
        for what, number, limit, mend in asked:
            if limit is not None and number > limit:
                raise UsageError(
                    f"partition {name} of cluster {self.name} has {limit} {what}, asked for {number}; {mend}, "
                    f"or choose another of: {', '.join(self.partitions)}"
                )
        if limits.max_time and wanted.time_min > parse_time(limits.max_time):
            raise UsageError(
                f"partition {name} of cluster {self.name} allows {time_text(parse_time(limits.max_time))}, asked for "
                f"{time_text(wanted.time_min)}; lower -t/--time"
            )


def load_cluster(name: str) -> Cluster:
    """The profile of that name, or of that .yaml file.

    Raises:
        UsageError: no such profile, or a key or value in it that is not allowed (as file:line).
    """
    document = load_yaml(find_config("clusters", name))
    allowed = {entry.name for entry in fields(Cluster)} - {"name", "document"}
    document.only(allowed)
    values = dict(document.values)
    scheduler = values.get("scheduler", "slurm")
    if scheduler not in ("slurm", "local"):
        raise UsageError(f"{document.where('scheduler')}: scheduler must be slurm or local, not {scheduler!r}")
    _check_launcher(document, values.get("launcher", Cluster.launcher))
    for key in ("required", "omit"):
        values[key] = _texts(document, key, "options, such as [account]")
        for option in values[key]:
            if option not in Resources.__dataclass_fields__:
                raise UsageError(
                    f"{document.where(key)}: {key}: unknown option {option!r}; see `hpcdl submit --help`."
                    f"{suggestion(option, Resources.__dataclass_fields__)}"
                )
    values["prologue"] = _texts(
        document, "prologue", "lines, such as ['module load gcc']; quote a line that holds ': '"
    )
    if not isinstance(values.get("node_scratch", ""), str):
        raise UsageError(
            f"{document.where('node_scratch')}: node_scratch must be a folder, such as /scratch/$USER/job_$SLURM_JOB_ID"
        )
    values["environment"] = {
        variable: _variable(document, variable, value) for variable, value in document.section("environment").items()
    }
    values["defaults"] = document.section("defaults")
    values["partitions"] = {
        partition: _partition(document, partition, limits)
        for partition, limits in document.section("partitions").items()
    }
    return Cluster(name=document.path.stem, document=document, **values)


def _check_launcher(document: Document, launcher: Any) -> None:
    where = document.where("launcher")
    if not isinstance(launcher, str):
        raise UsageError(f"{where}: launcher must be one line, such as 'srun --mpi=pmix'")
    try:
        wanted = {entry[1] for entry in string.Formatter().parse(launcher) if entry[1] is not None}
        if not wanted - LAUNCHER_FIELDS:
            # A trial, for quotes that do not close and formats that no number has.
            for word in shlex.split(launcher):
                word.format(**dict.fromkeys(LAUNCHER_FIELDS, 1))
    except (ValueError, LookupError) as error:
        raise UsageError(f"{where}: launcher: {error}; it is split into words as a shell does") from None
    if wanted - LAUNCHER_FIELDS:
        listed = ", ".join(f"{{{name}}}" for name in sorted(LAUNCHER_FIELDS))
        raise UsageError(f"{where}: launcher may use {listed}, not {', '.join(sorted(wanted - LAUNCHER_FIELDS))}")


def _texts(document: Document, key: str, what: str) -> tuple[str, ...]:
    """A top-level list of texts. A text alone is refused: as a sequence it would be one of letters."""
    value = document.values.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"{document.where(key)}: {key} must be a list of {what}")
    return tuple(value)


def _variable(document: Document, name: str, value: Any) -> str:
    where = document.where(f"environment.{name}")
    if not VARIABLE_NAME.fullmatch(name):
        raise UsageError(
            f"{where}: environment: {name!r} cannot name a variable; use letters, digits and _, no digit first"
        )
    if isinstance(value, bool):
        return str(value).lower()  # As YAML writes it, not as Python does.
    if not isinstance(value, str | int | float):
        raise UsageError(f"{where}: environment: {name} must be text or a number; '' is the empty text")
    return str(value)


def _partition(document: Document, name: str, limits: Any) -> Partition:
    key = f"partitions.{name}"
    known = {entry.name for entry in fields(Partition)}
    if not isinstance(limits, dict) or set(limits) - known:
        raise UsageError(f"{document.where(key)}: partition {name} may hold: {', '.join(sorted(known))}")
    limits = {limit: value for limit, value in limits.items() if value is not None}
    for limit, value in limits.items():
        where = document.where(f"{key}.{limit}")
        if limit == "max_time":
            try:
                parse_time(str(value))
            except ValueError as error:
                raise UsageError(f"{where}: max_time: {error}") from None
            limits[limit] = str(value)  # A bare number is minutes.
        elif type(value) is not int or value < 0:  # `true` is an int as well.
            raise UsageError(f"{where}: {limit} must be a whole number of 0 or more, not {value!r}")
    return Partition(**limits)
