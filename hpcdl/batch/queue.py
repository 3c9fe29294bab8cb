"""One door to both schedulers: submit a run, ask for the state of many, cancel one, wait for one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hpcdl.batch.local import PREFIX, Local
from hpcdl.batch.slurm import Slurm
from hpcdl.batch.states import JobInfo
from hpcdl.cluster import Cluster
from hpcdl.errors import FailedError, HpcdlError, TimeOutError
from hpcdl.rundir import RunDir
from hpcdl.spec import JobSpec

PATIENCE_S = 600.0
POLL_LOCAL_S = 0.5
POLL_SLURM_S = 5.0
"""A batched squeue for one job this often is what a user with `watch` would cause; login nodes bear it."""


def submit_run(spec: JobSpec, run: RunDir, undo: Callable[[], None]) -> str:
    """Submit the run's script and note it; `undo` takes the run folder back to what it was when the scheduler refuses.

    Returns:
        The job id.
    """
    scheduler = _scheduler(spec.cluster)
    try:
        scheduler.check(spec)
        taken = scheduler.submit(run, spec.sbatch)
    except TimeOutError:
        raise  # the job may be there: its folder stays
    except HpcdlError:
        undo()
        raise
    run.record("submitted", taken.job_id, **taken.details)
    return taken.job_id


def check_scheduler(spec: JobSpec) -> None:
    """Raises UsageError when this job cannot be submitted from here."""
    _scheduler(spec.cluster).check(spec)


def job_states(runs: Sequence[RunDir]) -> dict[Path, JobInfo | None]:
    """State of each run's newest job, by run folder, with one squeue and one sacct call for all; None: never submitted."""
    newest: dict[Path, tuple[RunDir, str, float]] = {}
    for run in runs:
        events = [event for event in run.events() if event["event"] == "submitted"]
        if events:
            newest[run.path] = (run, events[-1]["job_id"], float(events[-1]["time"]))
    here = [(run, job_id) for run, job_id, _ in newest.values() if job_id.startswith(PREFIX)]
    there = [(job_id, when) for _, job_id, when in newest.values() if not job_id.startswith(PREFIX)]
    infos: dict[str, JobInfo] = Local().jobs(here) if here else {}
    if there:
        infos |= Slurm().jobs(there)
    return {run.path: infos[newest[run.path][1]] if run.path in newest else None for run in runs}


def job_state(run: RunDir) -> JobInfo | None:
    """State of one run's newest job."""
    return job_states([run])[run.path]


def cancel_run(run: RunDir) -> str | None:
    """Cancel the run's newest job; gives its id, None when the run was never submitted."""
    job_ids = run.job_ids()
    if not job_ids:
        return None
    job_id = job_ids[-1]
    if job_id.startswith(PREFIX):
        Local().cancel(run, job_id)
    else:
        Slurm().cancel(job_id)
    return job_id


def may_be_active(run: RunDir, job_id: str) -> bool | None:
    """Whether a job of this run may still be running, as far as can be told from here; None when it cannot."""
    try:
        if job_id.startswith(PREFIX):
            return Local().may_be_active(run, job_id)
        info = Slurm().jobs([(job_id, time.time())])[job_id] if job_id.isdigit() else None
    except HpcdlError:
        return None
    return None if info is None or info.source == "none" else info.active


def end_time(job_id: str) -> float | None:
    """When a running job's walltime ends, in seconds since 1970, asked from within the job; None when that cannot be told."""
    if job_id.startswith(PREFIX):
        return Local().end_time()
    try:
        return Slurm().end_time(job_id) if job_id.isdigit() else None
    except HpcdlError:
        return None


def requeue(job_id: str) -> None:
    """Put a running job back in the queue, from within the job; one that Slurm is ending or has requeued is left alone.

    Raises:
        HpcdlError: Slurm refuses.
    """
    if job_id.startswith(PREFIX):
        return  # the local supervisor reads the event that the attempt has written
    if Slurm().jobs([(job_id, time.time())])[job_id].state == "RUNNING":
        Slurm().requeue(job_id)


def patient_state(run: RunDir) -> JobInfo | None:
    """`job_state`, asked again for some minutes when the scheduler does not answer: controllers restart, jobs run on.

    Raises:
        HpcdlError: the last answer, after PATIENCE_S seconds.
    """
    until, pause = time.monotonic() + PATIENCE_S, POLL_SLURM_S
    while True:
        try:
            return job_state(run)
        except (FailedError, TimeOutError):
            if time.monotonic() > until:
                raise
            time.sleep(pause)
            pause = min(60.0, 2 * pause)


def wait_run(run: RunDir, tick: Callable[[JobInfo], None]) -> JobInfo:
    """Wait until the run's job has ended; `tick` sees every state that was asked for."""
    while True:
        info = patient_state(run)
        assert info is not None  # only submitted runs are waited for
        tick(info)
        if not info.active:
            return info
        time.sleep(POLL_LOCAL_S if info.source == "local" else POLL_SLURM_S)


def _scheduler(cluster: Cluster) -> Slurm | Local:
    return Slurm() if cluster.scheduler == "slurm" else Local()
