"""Work on data runs behind `python -m hpcdl.…`: here in a child process, or as a job with --nodes."""

from __future__ import annotations

import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from hpcdl.batch.queue import check_scheduler, submit_run
from hpcdl.batch.script import render
from hpcdl.cli._follow import submitted
from hpcdl.errors import UsageError
from hpcdl.newrun import make_run, new_run
from hpcdl.options import Options, sbatch_arguments
from hpcdl.settings import read_files, read_settings, resolve
from hpcdl.spec import JobSpec

MODULES = {"preprocess": "hpcdl.prep", "predict": "hpcdl.predict", "check": "hpcdl.check"}


def run_here(kind: str, request: Mapping[str, Any]) -> None:
    """Run a request in a child process with this terminal; ends the command with the child's exit code."""
    with tempfile.TemporaryDirectory(prefix="hpcdl-") as folder:
        path = Path(folder) / "request.json"
        path.write_text(json.dumps(request, ensure_ascii=False), encoding="utf-8")
        child = subprocess.Popen([sys.executable, "-P", "-m", MODULES[kind], str(path)])
        # The child ends its workers in order, and this process waits for that: Ctrl-C reaches it by itself, the rest is handed on.
        before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
        for number in (signal.SIGTERM, signal.SIGHUP):
            before[number] = signal.signal(number, lambda received, _: child.send_signal(received))
        code = child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        raise typer.Exit(code if code > 0 else 128 - code)


def wants_job(resources: Mapping[str, Any], *others: Any) -> bool:
    """Whether any flag was given that only a job can follow; --cpus-per-task means threads here as well."""
    asked = [value for name, value in resources.items() if name != "cpus_per_task"]
    return any(value not in (None, False) for value in [*asked, *others])


def check_request(path: Path, values: Mapping[str, Any], command: str) -> None:
    """What the login node can see of a request before it queues: names, types, ranges, and that the files are there.

    Raises:
        UsageError: one of them is wrong.
    """
    # Lists keep their items: text would be cut at commas, which a file name may hold.
    resolve(read_settings(path), [("option {name}", values)], command)
    for pattern in [text for name in read_files(path) for text in _texts(values.get(name))]:
        # The pattern may be absolute, and a link that leads nowhere is told of by who reads it.
        if not os.path.lexists(pattern) and not glob.glob(pattern, recursive=True):  # noqa: PTH207
            raise UsageError(
                f"{pattern}: no such file, and no file matches it as a glob; the path starts from {Path.cwd()}"
            )


def _texts(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def run_as_job(
    kind: str,
    request: Mapping[str, Any],
    options: Options,
    name: str | None,
    sbatch: list[str] | None,
    dry_run: bool,
    wait: bool,
    json_: bool,
) -> None:
    """Submit a request as a job of its own run folder; paths in it stay relative to the working directory."""
    run_name, run_dir = new_run(options.runs, name, kind)
    details = {"cwd": str(Path.cwd()), "command": list(request.get("command", ()))}
    spec = JobSpec(kind, run_name, run_dir, options.cluster, options.resources, details, sbatch_arguments(sbatch))
    if dry_run:
        print(render(spec), end="")
        return
    check_scheduler(spec)
    spec, run, undo = make_run(spec, render, named=name is not None, request=request)
    job_id = submit_run(spec, run, undo)
    submitted(run, job_id, spec.cluster.name, wait, json_)
