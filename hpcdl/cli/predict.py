"""Draw the map: run a trained network over images, window by window, and write a GeoTIFF, a PNG and, with labels, the accuracy.

Runs here, or as a job with --nodes.

Example: hpcdl predict zion-unet --images 'landsat_b*.tif' --labels nlcd2011.tif --region test --out map.tif
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import hpcdl
from hpcdl.cli._options import (
    ClusterName,
    DryRun,
    Json,
    Name,
    Runs,
    Sbatch,
    Wait,
    warn_environment,
    with_resources,
    with_settings,
)
from hpcdl.cli._work import run_as_job, run_here
from hpcdl.rundir import find_run
from hpcdl.settings import read_settings
from hpcdl.spec import RESOURCE_SETTINGS, resolve_options


def command() -> Callable[..., None]:
    """The command, its options read from the settings of hpcdl.predict."""
    settings = read_settings(Path(hpcdl.__file__).parent / "predict" / "settings.py")
    return with_resources(with_settings(predict, settings, panel="Prediction"))


def predict(
    run: Annotated[str, typer.Argument(help="Name or folder of a training run.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The map, a .tif file.")],
    name: Name = None,
    cluster: ClusterName = None,
    runs: Runs = None,
    sbatch: Sbatch = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    json_: Json = False,
    **values: Any,
) -> None:
    """Find the run, start the work here or submit it."""
    resources = {key: values.pop(key) for key in RESOURCE_SETTINGS}
    request = {
        "run": str(find_run(run, Path(runs or "runs")).path),
        "out": str(Path(out).expanduser().absolute()),
        "settings": {key: value for key, value in values.items() if value is not None},
        "threads": resources["cpus_per_task"],
        "command": ["hpcdl", *sys.argv[1:]],
        "json": json_,
    }
    if resources["nodes"] is None and resources["ntasks_per_node"] is None and not dry_run:
        run_here("predict", request)
        return
    warn_environment()
    options = resolve_options({**resources, "cluster": cluster, "runs": runs})
    request["threads"] = options.resources.cpus_per_task
    run_as_job("predict", request, options, name, sbatch, dry_run, wait, json_)
