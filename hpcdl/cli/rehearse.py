"""Rehearse a run before it costs node-hours: does it resume bit for bit, and what will it take?

Trains a few steps on the nodes that you ask for, interrupts itself, resumes, compares the weights, and measures
start, step, validation and checkpoint. Prints what the whole run will take, its node-hours and the walltime to ask
for. TARGET is an architecture, or a run whose request is taken over. Waits for the job; the report stays in the
rehearsal's folder, and `hpcdl rehearse` of it shows it again.

Example: hpcdl rehearse unet --data data/zion --nodes 4
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hpcdl.batch.preflight import check_data
from hpcdl.batch.queue import check_scheduler, submit_run
from hpcdl.batch.script import render
from hpcdl.cli._follow import submitted, wait_for
from hpcdl.cli._options import (
    ClusterName,
    DryRun,
    Json,
    Name,
    Runs,
    Sbatch,
    parse_settings,
    print_json,
    warn_environment,
    with_resources,
)
from hpcdl.errors import UsageError
from hpcdl.newrun import make_run, new_run, resume_spec, train_spec
from hpcdl.options import resolve_options, runs_folder, sbatch_arguments
from hpcdl.rehearse.estimate import Forecast, Measured, rows
from hpcdl.resources import parse_time
from hpcdl.rundir import RunDir
from hpcdl.shards.manifest import load_manifest
from hpcdl.spec import JobSpec

TIME = "00:15:00"


def command() -> Callable[..., None]:
    """The command, with one option a resource."""
    return with_resources(rehearse)


def rehearse(
    target: Annotated[str, typer.Argument(help="An architecture, a run, or a rehearsal that has ended.")],
    data: Annotated[str | None, typer.Option("--data", help="Data set; of a run: its own.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting; may stand often.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps before and after the interruption.")] = 10,
    name: Name = None,
    cluster: ClusterName = None,
    comm: Annotated[str | None, typer.Option("--comm", help="auto | horovod | torch | single")] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Submit and return.")] = False,
    runs: Runs = None,
    sbatch: Sbatch = None,
    dry_run: DryRun = False,
    json_: Json = False,
    **resources: Any,
) -> None:
    """Make a spec of the run to be, submit its rehearsal, wait, print."""
    warn_environment()
    folder = runs_folder(runs)
    former = RunDir(folder / target) if (folder / target / "run.yaml").is_file() else None
    if former is not None and former.spec()["kind"] == "rehearse":
        _show(former, json_)
        return
    flags = {**resources, "cluster": cluster, "comm": comm, "runs": runs}
    settings, words = parse_settings(set_), sbatch_arguments(sbatch)
    if former is not None:
        if data:
            raise UsageError(f"--data: {former.name} is a run and has its data set; leave it out")
        spec = resume_spec(former, flags, settings, words)
        job_file = former.code / spec.request["job"]
    else:
        spec, job_file = train_spec(target, data, None, settings, words, resolve_options(flags))
        if not data:
            raise UsageError(f"--data is missing: on which data set shall {target} be rehearsed?")
    spec = check_data(spec, job_file, remember=not dry_run)
    spec = _rehearsal(spec, folder, name, steps, given_time=resources.get("time"))
    if dry_run:
        print(render(spec), end="")
        return
    check_scheduler(spec)
    spec, run, undo = make_run(spec, render, named=name is not None, job_file=job_file)
    job_id = submit_run(spec, run, undo)
    if no_wait:
        submitted(run, job_id, spec.cluster.name, False, json_)
        return
    info = wait_for(run, quiet=json_)
    if (run.path / "rehearsal.json").is_file():
        _show(run, json_)
    raise typer.Exit(info.process_code())


def _rehearsal(spec: JobSpec, folder: Path, name: str | None, steps: int, given_time: str | None) -> JobSpec:
    """The rehearsal of a training: the same request on the same nodes, for a short time."""
    run_name, run_dir = new_run(folder, name, f"{spec.request['architecture']}-rehearsal")
    manifest = load_manifest(Path(spec.request["data"]["path"]))
    names = (spec.resources.partition or "").split(",")
    known = [spec.cluster.partitions[one].max_time for one in names if one in spec.cluster.partitions]
    details = {
        "steps": steps,
        "num_train": manifest.num_samples("train"),
        "num_val": manifest.num_samples("val") if "val" in manifest.splits else 0,
        "longest": min(filter(None, known), key=parse_time, default=None),
    }
    short = min(TIME, spec.resources.time, key=parse_time)
    resources = replace(spec.resources, time=given_time or short, requeue=False)
    request = {**spec.request, "rehearsal": details}
    return replace(spec, kind="rehearse", name=run_name, run_dir=run_dir, resources=resources, request=request)


def _show(run: RunDir, json_: bool) -> None:
    path = run.path / "rehearsal.json"
    if not path.is_file():
        raise UsageError(f"{run.name}: its rehearsal has not ended well; look at `hpcdl logs {run.name}`")
    result, resources = json.loads(path.read_text(encoding="utf-8")), run.spec()["resources"]
    if json_:
        print_json({"run": run.name, **result})
        return
    tasks = resources["nodes"] * resources["ntasks_per_node"]
    for what, how_much in rows(
        Measured(**result["measured"]), Forecast(**result["forecast"]), resources["nodes"], tasks
    ):
        print(f"{what:24} {how_much}")
