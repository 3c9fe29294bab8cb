"""Turn raw files into a sharded data set: `hpcdl preprocess KIND`, one command an input kind.

Example: hpcdl preprocess landcover --images 'landsat_b*.tif' --labels nlcd2011.tif --test-region east:0.3 --out data/zion
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hpcdl.catalog import input_kinds
from hpcdl.cli._options import (
    ClusterName,
    DryRun,
    Json,
    Name,
    Runs,
    Sbatch,
    Wait,
    print_json,
    warn_environment,
    warn_omitted,
    with_resources,
    with_settings,
)
from hpcdl.cli._work import check_request, run_as_job, run_here, wants_job
from hpcdl.options import RESOURCE_SETTINGS, Options, resolve_options
from hpcdl.settings import read_help, read_settings
from hpcdl.shards.manifest import load_manifest


def command() -> typer.Typer:
    """One command an input kind, its options read from the kind's Settings."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)
    for kind, path in input_kinds().items():
        # Options of the others would take time to make, and only their lines in the list are needed.
        made = _kind_command(kind, path) if kind in sys.argv else lambda: None
        app.command(kind, help=read_help(path))(made)
    # A callback, so that a single kind is a subcommand all the same.
    app.callback()(lambda: None)
    return app


def _kind_command(kind: str, path: Path) -> Callable[..., None]:
    settings = read_settings(path)

    def preprocess(
        out: Annotated[str, typer.Option("--out", "-o", help="Folder of the data set.")],
        workers: Annotated[
            int | None, typer.Option("--workers", min=1, help="Processes here.  [default: one a CPU]")
        ] = None,
        overwrite: Annotated[
            bool, typer.Option("--overwrite", help="Replace a data set made with other settings.")
        ] = False,
        keep_going: Annotated[
            bool, typer.Option("--keep-going", help="When a shard fails, finish the others before giving up.")
        ] = False,
        name: Name = None,
        cluster: ClusterName = None,
        runs: Runs = None,
        sbatch: Sbatch = None,
        dry_run: DryRun = False,
        wait: Wait = False,
        json_: Json = False,
        **values: Any,
    ) -> None:
        resources = {key: values.pop(key) for key in RESOURCE_SETTINGS}
        given = {key: value for key, value in values.items() if value is not None}
        request = {
            "kind": kind,
            "settings": given,
            "out": str(Path(out).expanduser()),
            "workers": workers,
            "overwrite": overwrite,
            "keep_going": keep_going,
            "command": ["hpcdl", *sys.argv[1:]],
        }
        check_request(path, given, f"hpcdl preprocess {kind}")
        if not wants_job(resources, name, cluster, sbatch, dry_run, wait):
            run_here("preprocess", request)
            _report(Path(out).expanduser(), json_)
            return
        warn_environment()
        # Workers are processes of one CPU each, and use no GPU; without a number of them they fill the nodes.
        flags = {**{"cpus_per_task": 1, "gpus_per_node": 0, "ntasks_per_node": 1}, **_given(resources)}
        options = resolve_options({**flags, "cluster": cluster, "runs": runs})
        if resources["ntasks_per_node"] is None:
            flags["ntasks_per_node"] = _workers(options)
            options = resolve_options({**flags, "cluster": cluster, "runs": runs})
        warn_omitted(options.cluster, resources)
        run_as_job("preprocess", request, options, name, sbatch, dry_run, wait, json_)

    return with_resources(with_settings(preprocess, settings, panel="Input"))


def _report(folder: Path, json_: bool) -> None:
    manifest = load_manifest(folder)
    counts = {split: manifest.num_samples(split) for split in manifest.splits}
    if json_:
        print_json({"data": str(folder), "kind": manifest.kind, "digest": manifest.digest, "num_samples": counts})
    else:
        print(folder)


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def _workers(options: Options) -> int:
    resources = options.resources
    limits = options.cluster.partitions.get((resources.partition or "").split(",")[0])
    return max(1, (limits.cpus_per_node or 1) // resources.cpus_per_task) if limits else 1
