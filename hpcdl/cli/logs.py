"""Print a run's log, all its jobs' as one; with -f follow it until the job ends. Ctrl-C stops the following, never the job.

Example: hpcdl logs zion-unet -f
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from hpcdl.cli._follow import follow_log
from hpcdl.cli._options import Json, Runs, print_json
from hpcdl.errors import FailedError
from hpcdl.options import runs_folder
from hpcdl.rundir import find_run


def command() -> Callable[..., None]:
    """The command."""
    return logs


def logs(
    run: Annotated[str, typer.Argument(help="Name, folder or job id of a run.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing until the job ends.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Only the last lines; 0 is all.")] = 0,
    runs: Runs = None,
    json_: Json = False,
) -> None:
    """Find the logs, print them as one."""
    found = find_run(run, runs_folder(runs))
    job_ids = found.job_ids()
    # A job id names its own log; a run's name means those of all its jobs, as one stream.
    chosen = [run] if run in job_ids else job_ids
    paths = [path for path in map(found.log, chosen) if path.is_file()]
    text = "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)
    if json_:
        files = [str(path) for path in paths]
        job_id = chosen[-1] if chosen else ""
        print_json({"run": found.name, "job_id": job_id, "files": files, "lines": text.splitlines()[-lines:]})
        return
    newest = found.log(chosen[-1]) if chosen else found.log("")
    if follow:
        earlier = "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths if path != newest)
        if not lines:
            sys.stdout.write(earlier)
        follow_log(found, newest, lines, sys.stdout)
        return
    if not paths:
        raise FailedError(f"{newest}: no log yet: the job has not started (`hpcdl status {found.name}` says why)")
    sys.stdout.write(text if not lines else "".join(text.splitlines(keepends=True)[-lines:]))
