"""Show runs: state, where they run, how far they are. Without a name: all runs of the folder.

States come from squeue, then sacct, in one call each for all runs; local runs from their supervising process.

Example: hpcdl status zion-unet --json
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from hpcdl.cli._options import Json, Runs, print_json
from hpcdl.options import runs_folder
from hpcdl.report.status import describe, table
from hpcdl.rundir import all_runs, find_run


def command() -> Callable[..., None]:
    """The command."""
    return status


def status(
    run: Annotated[list[str] | None, typer.Argument(help="Names, folders or job ids of runs.")] = None,
    runs: Runs = None,
    json_: Json = False,
) -> None:
    """Look up, print."""
    folder = runs_folder(runs)
    chosen = [find_run(reference, folder) for reference in run] if run else all_runs(folder)
    rows = describe(chosen)
    if json_:
        print_json(rows)
    elif rows:
        print(table(rows))
    else:
        print(f"no runs in {folder}/; start one with `hpcdl submit`")
