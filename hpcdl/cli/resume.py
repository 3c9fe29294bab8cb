"""Go on with a run from its newest checkpoint, on other resources or for longer if you like.

Any number of nodes will do: the samples come in the same order. Settings that the checkpoint depends on stay as they are.

Example: hpcdl resume zion-unet --nodes 2 --time 04:00:00 --set epochs=40
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from hpcdl.cli._again import AcceptData, submit_again
from hpcdl.cli._options import (
    ClusterName,
    DryRun,
    Json,
    Runs,
    Sbatch,
    Wait,
    parse_settings,
    warn_environment,
    with_resources,
)
from hpcdl.newrun import resume_spec
from hpcdl.options import runs_folder, sbatch_arguments
from hpcdl.rundir import find_run


def command() -> Callable[..., None]:
    """The command, with one option a resource."""
    return with_resources(resume)


def resume(
    run: Annotated[str, typer.Argument(help="Name, folder or job id of a run.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting to change; may stand often.")
    ] = None,
    cluster: ClusterName = None,
    comm: Annotated[str | None, typer.Option("--comm", help="auto | horovod | torch | single")] = None,
    accept_data: AcceptData = False,
    runs: Runs = None,
    sbatch: Sbatch = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    json_: Json = False,
    **resources: Any,
) -> None:
    """Find, lay the new values over the old, submit."""
    warn_environment()
    former = find_run(run, runs_folder(runs))
    flags = {**resources, "cluster": cluster, "comm": comm, "runs": runs}
    spec = resume_spec(former, flags, parse_settings(set_), sbatch_arguments(sbatch))
    submit_again(former, spec, accept_data, dry_run, wait, json_)
