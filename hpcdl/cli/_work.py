"""Preprocessing and prediction run behind `python -m hpcdl.…`: here in a child process, or as a job with --nodes."""

from __future__ import annotations

import json
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
from hpcdl.spec import JobSpec, Options, new_run, write_run

MODULES = {"preprocess": "hpcdl.prep", "predict": "hpcdl.predict"}


def run_here(kind: str, request: Mapping[str, Any]) -> None:
    """Run a request in a child process with this terminal; ends the command with the child's exit code."""
    with tempfile.TemporaryDirectory(prefix="hpcdl-") as folder:
        path = Path(folder) / "request.json"
        path.write_text(json.dumps(request, ensure_ascii=False), encoding="utf-8")
        child = subprocess.Popen([sys.executable, "-P", "-m", MODULES[kind], str(path)])
        # Ctrl-C reaches the child as well, which ends its workers in order; this process waits for that.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = child.wait()
        signal.signal(signal.SIGINT, before)
    if code:
        raise typer.Exit(code if code > 0 else 128 - code)


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
    spec = JobSpec(kind, run_name, run_dir, options.cluster, options.resources, details, tuple(sbatch or ()))
    script = render(spec)
    if dry_run:
        print(script, end="")
        return
    check_scheduler(spec)
    run, undo = write_run(spec, script, request=request)
    job_id = submit_run(spec, run, undo)
    submitted(run, job_id, spec.cluster.name, wait, json_)
