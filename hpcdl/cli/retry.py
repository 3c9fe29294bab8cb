"""Submit a failed run once more, just as it was, from its newest checkpoint. What has changed since is shown first.

The run's own copy of its job file is used. To change anything, `hpcdl resume` it or submit a new run.

Example: hpcdl retry zion-unet
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hpcdl import __version__
from hpcdl.architecture import load_architecture
from hpcdl.batch.queue import job_state
from hpcdl.cli._again import AcceptData, submit_again
from hpcdl.cli._options import DryRun, Json, Runs, Wait
from hpcdl.errors import UsageError
from hpcdl.newrun import resume_spec
from hpcdl.options import runs_folder
from hpcdl.rundir import RunDir, find_run, newest_step
from hpcdl.shards.manifest import load_manifest
from hpcdl.snapshot import changes_since, digest


def command() -> Callable[..., None]:
    """The command."""
    return retry


def retry(
    run: Annotated[str, typer.Argument(help="Name, folder or job id of a run.")],
    accept_data: AcceptData = False,
    runs: Runs = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    json_: Json = False,
) -> None:
    """Find, compare, submit."""
    former = find_run(run, runs_folder(runs))
    spec = resume_spec(former, {}, {}, ())
    info = job_state(former)
    if info is not None and info.ok:
        raise UsageError(
            f"{former.name}: ended well; there is nothing to retry. `hpcdl resume {former.name} --set epochs=…` trains on"
        )
    step = newest_step(former)
    start = f"goes on from step {step}" if step else "begins anew: it has no checkpoint"
    changes = [f"since {former.name} was submitted: {line}" for line in _changes(former, former.spec())]
    submit_again(former, spec, accept_data, dry_run, wait, json_, [*changes, f"{former.name} {start}"])


def _changes(former: RunDir, old: dict[str, Any]) -> list[str]:
    lines = changes_since(former.code)
    if old["hpcdl"] != __version__:
        lines.append(f"hpcdl: {old['hpcdl']} → {__version__}")
    try:
        current = load_architecture(old["architecture"]).job_file
        if digest(current) != old["code_sha256"]:
            lines.append(f"{current} has changed; the run keeps its own copy, {former.code / old['job']}")
    except UsageError:
        lines.append(f"no architecture {old['architecture']} is found from here; the run keeps its own copy")
    data = old["data"]
    if load_manifest(Path(data["path"])).digest != data["digest"]:
        lines.append(f"the data set {data['path']} has changed")
    return list(dict.fromkeys(lines))
