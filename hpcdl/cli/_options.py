"""Options that several commands share, made from the settings they stand for, and how results are printed."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from hpcdl.cluster import Cluster
from hpcdl.config import environment_warnings
from hpcdl.errors import UsageError
from hpcdl.options import RESOURCE_SETTINGS
from hpcdl.settings import REQUIRED, Setting

SHORT_FLAGS = {
    "nodes": "-N",
    "cpus_per_task": "-c",
    "time": "-t",
    "partition": "-p",
    "account": "-A",
    "qos": "-q",
    "constraint": "-C",
    "nodelist": "-w",
    "exclude": "-x",
    "dependency": "-d",
}
"""sbatch's own short flags."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Runs = Annotated[str | None, typer.Option("--runs", help="Folder of the runs.  [default: runs]")]
Name = Annotated[
    str | None, typer.Option("--name", "-J", "--job-name", help="Name of the run and of its job.  [default: numbered]")
]
ClusterName = Annotated[
    str | None,
    typer.Option("--cluster", help="Cluster profile: a name of configs/clusters/ or a file.  [default: local]"),
]
Sbatch = Annotated[
    list[str] | None,
    typer.Option("--sbatch", metavar="OPTION", help='A further sbatch option, such as "--switches=1".'),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the script that would be submitted; write nothing.")]
Wait = Annotated[bool, typer.Option("--wait", help="Stay until the job has ended; exit with its exit code.")]


def with_settings(
    function: Callable[..., None], settings: Mapping[str, Setting], panel: str, defaults: bool = False
) -> Callable[..., None]:
    """The function with its **keywords replaced by one option a setting, so that Typer shows and parses them.

    Args:
        function: takes the settings as keywords; one that was not given is None (unless `defaults`).
        settings: by Python name.
        panel: heading of the options in `--help`.
        defaults: whether a setting that was not given has its default instead of None.
    """
    signature = inspect.signature(function, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    for name, setting in settings.items():
        flag = "--" + name.replace("_", "-")
        flags = [flag, *([SHORT_FLAGS[name]] if name in SHORT_FLAGS else [])]
        kind: Any = {"bool": bool, "int": int, "float": float}.get(setting.type_name, str)
        required = setting.default is REQUIRED
        if kind is bool:
            flags[0] += f"/--no-{name.replace('_', '-')}"
        if setting.many:
            kind = list[kind]
        hint = "" if required or setting.default in (None, ()) else f"  [default: {setting.default}]"
        allowed = f" ({' | '.join(map(str, setting.choices))})" if setting.choices else ""
        option = typer.Option(*flags, help=setting.help + allowed + hint, show_default=False, rich_help_panel=panel)
        default: Any = inspect.Parameter.empty
        if not required:
            kind, default = kind | None, setting.default if defaults else None
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
        )

    def call(**arguments: Any) -> None:
        function(**arguments)

    order = sorted(parameters, key=lambda p: p.default is not inspect.Parameter.empty)
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in order]
    call.__signature__ = signature.replace(parameters=keyword)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in keyword}
    return call


def with_resources(function: Callable[..., None]) -> Callable[..., None]:
    """The function with the flags of a resource request, named as sbatch's."""
    return with_settings(function, RESOURCE_SETTINGS, panel="Resources")


def warn_omitted(cluster: Cluster, flags: Mapping[str, Any]) -> None:
    """Warn of flags that were given and that the cluster's sbatch would refuse."""
    for name in cluster.omit:
        if flags.get(name) is not None:
            note(
                f"hpcdl: warning: cluster {cluster.name} takes no --{name.replace('_', '-')}; it is left out of the script"
            )


def parse_settings(pairs: list[str] | None) -> dict[str, str]:
    """What --set gave, by dotted name.

    Raises:
        UsageError: one without '='.
    """
    values = {}
    for pair in pairs or []:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise UsageError(f"--set {pair!r}: expected key=value, such as --set optimizer.lr=3e-4")
        values[name.strip()] = value.strip()
    return values


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=1, ensure_ascii=False, default=str))


def note(text: str) -> None:
    """A line on stderr, where progress and warnings go."""
    print(text, file=sys.stderr, flush=True)


def warn_environment() -> None:
    """Warn of variables that look like Slurm's and are not."""
    for line in environment_warnings():
        note(f"hpcdl: warning: {line}")
