"""Runs as rows: the scheduler's state joined with how far the training is."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdl.batch.queue import job_states
from hpcdl.batch.states import JobInfo, base_name
from hpcdl.errors import HpcdlError
from hpcdl.rundir import RunDir, read_lines


@dataclass(frozen=True)
class Far:
    """How far a training run is, from its newest metrics; zeros and empty before the first line."""

    step: int = 0
    num_steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    samples_per_s: float | None = None

    def text(self) -> str:
        """'step 120/400 · loss 0.91 · 33 samples/s'."""
        parts = []
        if self.num_steps:
            parts.append(f"step {self.step}/{self.num_steps}")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        if self.samples_per_s is not None:
            parts.append(f"{self.samples_per_s:.4g} samples/s")
        return " · ".join(parts)


def progress_of(run: RunDir) -> Far:
    """The newest training line of metrics.jsonl."""
    newest = next((line for line in reversed(read_lines(run.metrics_file)) if line.get("split") == "train"), None)
    if newest is None:
        return Far()
    return Far(newest["step"], newest["num_steps"], newest["epoch"], newest.get("loss"), newest.get("samples_per_s"))


def describe(runs: Sequence[RunDir]) -> list[dict[str, Any]]:
    """One mapping a run, as `hpcdl status --json` prints them (docs/run-folder.md tells the keys)."""
    infos = _states(runs)
    rows = []
    for run in runs:
        spec, info, far = run.spec(), infos[run.path], progress_of(run)
        row: dict[str, Any] = {
            "run": run.name,
            "run_dir": str(run.path),
            "kind": spec["kind"],
            "architecture": spec.get("architecture"),
            "cluster": spec["cluster"],
            "num_tasks": spec["resources"]["nodes"] * spec["resources"]["ntasks_per_node"],
            "attempts": _attempts(run),
            "state": base_name(info.state) if info else "UNKNOWN" if run.job_ids() else "NOT_SUBMITTED",
            "job": info.to_json() if info else None,
        }
        if far.num_steps:
            row["progress"] = vars(far)
        rows.append(row)
    return rows


def _attempts(run: RunDir) -> int:
    """How often it was started; a job that waits for its first start counts as one, and so does each job that has no attempts."""
    events = run.events()
    began = [event["job_id"] for event in events if event["event"] == "began"]
    jobs = {event["job_id"] for event in events if event["event"] == "submitted"}
    return len(began) + len(jobs - set(began))


def _states(runs: Sequence[RunDir]) -> dict[Path, JobInfo | None]:
    """States of all runs; when Slurm cannot be asked, local runs are still told, and why the others are not."""
    try:
        return job_states(runs)
    except HpcdlError as error:
        here = [run for run in runs if run.spec().get("scheduler") == "local"]
        if not here:
            raise
        print(f"hpcdl: warning: {error}", file=sys.stderr)
        return {run.path: None for run in runs} | job_states(here)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for a person; as wide as the terminal, or as needed when there is none."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=None, pad_edge=False)
    for heading in ("run", "job", "state", "attempts", "nodes", "elapsed / limit", "progress"):
        grid.add_column(heading, overflow="fold")
    for row in rows:
        job, far = row["job"] or {}, Far(**row["progress"]) if "progress" in row else Far()
        state = row["state"] + (f" ({job['reason']})" if job.get("reason") and job.get("active") else "")
        times = f"{job.get('elapsed', '')} / {job.get('time_limit', '')}" if job else ""
        cells = (state, str(row["attempts"]), job.get("nodes", ""), times, far.text())
        grid.add_row(row["run"], job.get("job_id", ""), *cells)
    buffer = io.StringIO()
    screen = Console()
    width = screen.width if screen.is_terminal else 200
    Console(file=buffer, width=width, highlight=False).print(grid)
    return buffer.getvalue().rstrip()
