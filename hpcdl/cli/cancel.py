"""Cancel a run's job. Its folder, logs and checkpoints stay; `hpcdl resume RUN` goes on from there.

Example: hpcdl cancel zion-unet
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from hpcdl.batch.queue import cancel_run, job_state
from hpcdl.cli._options import Json, Runs, print_json
from hpcdl.errors import UsageError
from hpcdl.options import runs_folder
from hpcdl.rundir import find_run


def command() -> Callable[..., None]:
    """The command."""
    return cancel


def cancel(
    run: Annotated[list[str], typer.Argument(help="Names, folders or job ids of runs.")],
    runs: Runs = None,
    json_: Json = False,
) -> None:
    """Find, cancel, print."""
    found = [find_run(reference, runs_folder(runs)) for reference in run]
    answers = []
    for reference, one in zip(run, found, strict=True):
        info = job_state(one)
        if info is not None and reference in one.job_ids()[:-1]:
            raise UsageError(
                f"job {reference} was an earlier one of run {one.name} and has ended; its newest is {info.job_id} "
                f"({info.state}): `hpcdl cancel {info.job_id}`"
            )
        if info is None:
            raise UsageError(f"{one.name}: was never submitted; there is nothing to cancel")
        if info.active:
            cancel_run(one)
        answers.append({"run": one.name, "job_id": info.job_id, "was": info.state, "cancelled": info.active})
    if json_:
        print_json(answers)
        return
    for answer in answers:
        what = "asked to end" if answer["cancelled"] else f"had ended already: {answer['was']}"
        print(f"{answer['run']}: job {answer['job_id']} {what}")
