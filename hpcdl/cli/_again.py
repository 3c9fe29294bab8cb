"""Submitting a run once more: what `resume` and `retry` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer

from hpcdl.batch.preflight import check_data, check_not_active
from hpcdl.batch.queue import check_scheduler, submit_run
from hpcdl.batch.script import render
from hpcdl.cli._follow import submitted
from hpcdl.cli._options import note
from hpcdl.newrun import rewrite_run
from hpcdl.rundir import RunDir
from hpcdl.spec import JobSpec
from hpcdl.watch.decide import bad_nodes

AcceptData = Annotated[
    bool,
    typer.Option("--accept-data", help="Go on even if the data set has changed; the current epoch then begins anew."),
]


def submit_again(
    former: RunDir,
    spec: JobSpec,
    accept_data: bool,
    dry_run: bool,
    wait: bool,
    json_: bool,
    notes: Sequence[str] = (),
) -> None:
    """Check the data set, write the new spec and script into the run's folder, submit.

    Args:
        notes: what to tell the user before it is submitted.

    Raises:
        UsageError: the run has a job that waits or runs, or another data set than it began with.
    """
    if not dry_run:
        check_not_active(former)
    spec = _away_from_bad_nodes(former, spec)
    spec = check_data(spec, former.code / spec.request["job"], remember=not dry_run, accept_changed=accept_data)
    for line in notes:
        note(f"hpcdl: {line}")
    if dry_run:
        print(render(spec), end="")
        return
    check_scheduler(spec)
    with former.submitting():
        check_not_active(former)
        run, undo = rewrite_run(former, spec, render(spec))
        job_id = submit_run(spec, run, undo)
    submitted(run, job_id, spec.cluster.name, wait, json_)


def _away_from_bad_nodes(former: RunDir, spec: JobSpec) -> JobSpec:
    nodes = [] if spec.cluster.scheduler == "local" else bad_nodes(former.events())
    known = (spec.resources.exclude or "").split(",")
    new = [node for node in nodes if node not in known]
    if not new:
        return spec
    note(f"hpcdl: keeps away from {', '.join(new)} (--exclude), where {former.name} failed twice or more")
    exclude = ",".join([*filter(None, known), *new])
    return replace(spec, resources=replace(spec.resources, exclude=exclude))
