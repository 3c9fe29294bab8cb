"""Following a run from the terminal: what to type next, its log as it grows, its progress until the end."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import NoReturn, TextIO

import typer

from hpcdl.batch.queue import patient_state, wait_run
from hpcdl.batch.states import JobInfo
from hpcdl.cli._options import note, print_json
from hpcdl.report.status import describe, progress_of
from hpcdl.rundir import RunDir

POLL_S = 1.0
STATE_POLL_S = 5.0


def submitted(run: RunDir, job_id: str, cluster: str, wait: bool, json_: bool) -> None:
    """What a command does after it has submitted a job: say so, and stay when asked to."""
    if json_ and not wait:
        print_json({"job_id": job_id, "run": run.name, "run_dir": str(run.path), "cluster": cluster})
    elif not json_:
        announce(run, job_id)
    if wait:
        wait_and_exit(run, json_)


def announce(run: RunDir, job_id: str) -> None:
    """Job id, folder, and the commands to go on with."""
    runs = "" if run.path.parent == Path.cwd() / "runs" else f" --runs {shlex.quote(str(run.path.parent))}"
    name = shlex.quote(run.name)
    print(f"Submitted job {job_id}\n  run     {run.path}")
    for what in (f"status {name}", f"logs {name} -f", f"cancel {name}"):
        print(f"  hpcdl {what}{runs}")


def wait_and_exit(run: RunDir, json_: bool) -> NoReturn:
    """Show progress until the job has ended, then exit with its code; after a failure the end of the log is shown."""
    info = wait_for(run, quiet=json_)
    if json_:
        print_json(describe([run])[0])
    raise typer.Exit(info.process_code())


def wait_for(run: RunDir, quiet: bool) -> JobInfo:
    """Show progress until the job has ended; then how, and after a failure the end of the log.

    Args:
        quiet: whether a good end is to be told by the caller.
    """
    try:
        info = _watch(run)
    except KeyboardInterrupt:
        note(f"hpcdl: no longer waiting; the job goes on: `hpcdl status {run.name}`, `hpcdl cancel {run.name}`")
        raise typer.Exit(130) from None
    if not info.ok:
        path = run.log(info.job_id)
        if path.is_file():
            note("".join(f"  | {line}\n" for line in path.read_text(errors="replace").splitlines()[-20:]).rstrip())
        reason = f" ({info.reason})" if info.reason else ""
        note(f"hpcdl: job {info.job_id} of {run.name} ended as {info.state}{reason}; its log: {path}")
    elif not quiet:
        print(f"Job {info.job_id} of {run.name}: {info.state} in {info.elapsed}")
    return info


def _watch(run: RunDir) -> JobInfo:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from hpcdl.console import err

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err(), disable=not err().is_terminal) as progress:
        task = progress.add_task(run.name, total=None, numbers="")

        def tick(info: JobInfo) -> None:
            far = progress_of(run)
            state = f"{run.name} {info.state}" + (f" ({info.reason})" if info.reason and info.active else "")
            progress.update(
                task, description=state, completed=far.step, total=far.num_steps or None, numbers=far.text()
            )

        return wait_run(run, tick)


def follow_log(run: RunDir, path: Path, lines: int, out: TextIO) -> None:
    """Print the log as it grows, until the run's job has ended and all of it was printed."""
    position, asked, info = 0, 0.0, None
    first = True
    while True:
        if time.monotonic() - asked > STATE_POLL_S or (info is not None and info.source == "local"):
            info, asked = patient_state(run), time.monotonic()
            if first and info is not None and info.active and not path.is_file():
                note(f"hpcdl: job {info.job_id} is {info.state} {info.reason}; its log follows as soon as it starts")
        first = False
        ended = info is None or not info.active
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                if position == 0 and lines:
                    out.write("".join(file.readlines()[-lines:]))
                else:
                    file.seek(position)
                    out.write(file.read())
                position = file.tell()
            out.flush()
        if ended:
            return
        try:
            time.sleep(POLL_S)
        except KeyboardInterrupt:
            note("hpcdl: no longer following; the job goes on")
            sys.exit(130)
