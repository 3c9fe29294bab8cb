"""Train an architecture: write the run folder, render the Slurm script, submit it.

Returns at once with the job id, the run folder and the commands to follow it. An option that is not given comes from
the environment (HPCDL_<OPTION>, SBATCH_*), ./hpcdl.yaml, ~/.config/hpcdl/config.yaml or the cluster profile, in this order.

Example: hpcdl submit unet --data data/zion --nodes 4 --set width=32 --set optimizer.lr=3e-4
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from hpcdl.batch.script import render
from hpcdl.cli._options import (
    ClusterName,
    DryRun,
    Json,
    Name,
    Runs,
    Sbatch,
    Wait,
    parse_settings,
    warn_environment,
    warn_omitted,
    with_resources,
)
from hpcdl.errors import UsageError
from hpcdl.newrun import make_run, train_spec
from hpcdl.options import resolve_options, sbatch_arguments


def command() -> Callable[..., None]:
    """The command, with one option a resource."""
    return with_resources(submit)


def submit(
    architecture: Annotated[
        str | None, typer.Argument(help="A name of configs/architectures/ or a .yaml file.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Data set that `hpcdl preprocess` made.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting; may stand often.")
    ] = None,
    stage: Annotated[
        bool,
        typer.Option("--stage", help="Copy the data set to each node's own disk first; the same as --set stage=true."),
    ] = False,
    name: Name = None,
    cluster: ClusterName = None,
    comm: Annotated[str | None, typer.Option("--comm", help="auto | horovod | torch | single")] = None,
    runs: Runs = None,
    sbatch: Sbatch = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    json_: Json = False,
    **resources: Any,
) -> None:
    """Parse, preflight, write, submit, print."""
    warn_environment()
    flags = {**resources, "cluster": cluster, "comm": comm, "runs": runs}
    settings, words = parse_settings(set_), sbatch_arguments(sbatch)
    if stage:
        settings["stage"] = "true"
    options = resolve_options(flags)
    warn_omitted(options.cluster, resources)
    spec, job_file = train_spec(architecture, data, name, settings, words, options)
    if dry_run and spec.request["data"] is None:
        print(render(spec), end="")
        return
    if spec.request["data"] is None:
        raise UsageError(f"--data is missing: which data set shall {architecture} be trained on?")
    # What follows is not needed to show a script, and takes as long to import as all the rest.
    from hpcdl.batch.preflight import check_data
    from hpcdl.batch.queue import check_scheduler, submit_run
    from hpcdl.cli._follow import submitted

    spec = check_data(spec, job_file, remember=not dry_run)
    if dry_run:
        print(render(spec), end="")
        return
    check_scheduler(spec)
    spec, run, undo = make_run(spec, render, named=name is not None, job_file=job_file)
    job_id = submit_run(spec, run, undo)
    submitted(run, job_id, spec.cluster.name, wait, json_)
