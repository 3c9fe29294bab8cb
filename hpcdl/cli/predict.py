"""Draw the map: run a trained network over images, window by window, and write a GeoTIFF, a PNG and, with labels, the accuracy.

Runs here, or as a job when --nodes, --cluster or another option of a job is given.

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
    warn_omitted,
    with_resources,
    with_settings,
)
from hpcdl.cli._work import check_request, run_as_job, run_here, wants_job
from hpcdl.errors import UsageError
from hpcdl.options import RESOURCE_SETTINGS, resolve_options, runs_folder
from hpcdl.rundir import find_run
from hpcdl.settings import read_settings

SETTINGS_FILE = Path(hpcdl.__file__).parent / "predict" / "settings.py"


def command() -> Callable[..., None]:
    """The command, its options read from the settings of hpcdl.predict."""
    return with_resources(with_settings(predict, read_settings(SETTINGS_FILE), panel="Prediction"))


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
    given = {key: value for key, value in values.items() if value is not None}
    check_request(SETTINGS_FILE, given, "hpcdl predict")
    found = find_run(run, runs_folder(runs))
    if not any(found.checkpoints.glob("step-*")):
        raise UsageError(f"run {found.name} has no checkpoint yet: look at `hpcdl status {found.name}`")
    request = {
        "run": str(found.path),
        "out": str(Path(out).expanduser().absolute()),
        "settings": given,
        "threads": resources["cpus_per_task"],
        "command": ["hpcdl", *sys.argv[1:]],
        "json": json_,
    }
    if not wants_job(resources, name, cluster, sbatch, dry_run, wait):
        run_here("predict", request)
        return
    warn_environment()
    options = resolve_options({**resources, "cluster": cluster, "runs": runs})
    warn_omitted(options.cluster, resources)
    request["threads"] = options.resources.cpus_per_task
    run_as_job("predict", request, options, name, sbatch, dry_run, wait, json_)
