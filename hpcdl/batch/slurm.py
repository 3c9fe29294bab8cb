"""The Slurm client: the one caller of its commands. Explicit formats, batched ids, time-outs on every call."""

from __future__ import annotations

import datetime
import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Sequence

from hpcdl.batch.states import JobInfo, Submission, base_name
from hpcdl.errors import FailedError, HpcdlError, TimeOutError, UsageError
from hpcdl.rundir import RunDir
from hpcdl.spec import JobSpec

CALL_TIMEOUT_S = 60
TRAIL_S = 600
QUEUE_FORMAT = "%i|%T|%r|%N|%D|%P|%a|%M|%l|%S"
HISTORY_FIELDS = "JobID,State,ExitCode,NodeList,NNodes,Partition,Account,Elapsed,Timelimit,Start,End,Reason"


class Slurm:
    """A Slurm cluster, as seen from a login node."""

    def check(self, spec: JobSpec) -> None:
        """Raises UsageError when this machine has no sbatch."""
        if shutil.which("sbatch") is None:
            raise UsageError(
                f"no sbatch on PATH: cluster {spec.cluster.name} is a Slurm cluster; run this on its login node, or "
                "use --cluster local for this machine"
            )

    def submit(self, run: RunDir, sbatch_arguments: Sequence[str]) -> Submission:
        """Hand the run's script to sbatch.

        Raises:
            FailedError: sbatch refused; its message is shown.
        """
        # What sbatch would read from SBATCH_* is in the script already, and there those variables would win over it.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SBATCH_")}
        try:
            answer = _call(["sbatch", "--parsable", *sbatch_arguments, run.script.name], cwd=run.path, env=environment)
        except TimeOutError as error:
            # A slow controller may have taken the job all the same.
            found = self._submitted_from(run)
            if found is None:
                raise TimeOutError(
                    f"{error}; whether it took the job is not known, so {run.path} is kept: look at `squeue --me`, and "
                    "delete the folder if the job is not there"
                ) from None
            return Submission(found)
        job_id = answer.strip().split(";")[0]
        if not job_id.isdigit():
            raise FailedError(f"sbatch gave no job id but {answer.strip()!r}; is one of the --sbatch options to blame?")
        return Submission(job_id)

    def _submitted_from(self, run: RunDir) -> str | None:
        """The newest job of this user whose working directory is the run folder."""
        try:
            text = _call(["squeue", "--noheader", "--user=" + getpass.getuser(), "--format=%A %Z"])
        except HpcdlError:
            return None
        ids = [line.partition(" ")[0] for line in text.splitlines() if line.partition(" ")[2] == str(run.path)]
        return max(ids, key=int, default=None)

    def jobs(self, runs: Sequence[tuple[str, float]]) -> dict[str, JobInfo]:
        """State of each job: squeue for those that go on, sacct for the others.

        Args:
            runs: pairs of job id and submission time in seconds since 1970; sacct searches from the earliest one.
        """
        found = self._queue([job_id for job_id, _ in runs])
        missing = [(job_id, submitted) for job_id, submitted in runs if job_id not in found]
        if missing:
            found |= self._history([job_id for job_id, _ in missing], min(submitted for _, submitted in missing))
        return {job_id: found.get(job_id) or _not_found(job_id, submitted) for job_id, submitted in runs}

    def cancel(self, job_id: str) -> None:
        """Ask Slurm to end a job; ending one that has ended is no error."""
        _call(["scancel", job_id])

    def end_time(self, job_id: str) -> float | None:
        """When a running job's walltime ends, in seconds since 1970."""
        text = _call(["squeue", "--noheader", "--jobs=" + job_id, "--format=%e"]).strip()
        try:
            return datetime.datetime.fromisoformat(text).timestamp()
        except ValueError:
            return None

    def requeue(self, job_id: str) -> None:
        """Put a running job back in the queue: Slurm ends it and starts it again, with the same id."""
        _call(["scontrol", "requeue", job_id])

    def _queue(self, job_ids: Sequence[str]) -> dict[str, JobInfo]:
        if not job_ids:
            return {}
        command = ["squeue", "--noheader", "--jobs=" + ",".join(job_ids), "--format=" + QUEUE_FORMAT]
        try:
            text = _call(command)
        except FailedError as error:
            # squeue refuses an id that has left its memory; sacct still has it.
            if "Invalid job id" in str(error):
                return {}
            raise
        found = {}
        for line in text.splitlines():
            values = line.strip().split("|")
            if len(values) == 10:
                job_id, state, reason, nodes, num, partition, account, elapsed, limit, start = values
                reason = "" if reason == "None" else reason
                found[job_id] = JobInfo(
                    job_id, state, None, reason, nodes, int(num), partition, account, elapsed, limit,
                    "" if start == "N/A" else start, source="squeue",
                )  # fmt: skip
        return found

    def _history(self, job_ids: Sequence[str], since: float) -> dict[str, JobInfo]:
        start = datetime.datetime.fromtimestamp(since - 86400).isoformat(timespec="seconds")
        text = _call(
            ["sacct", "--allocations", "--parsable2", "--noheader", "--jobs=" + ",".join(job_ids),
             "--starttime=" + start, "--format=" + HISTORY_FIELDS]
        )  # fmt: skip
        found = {}
        for line in text.splitlines():
            values = line.split("|")
            if len(values) == 12:
                job_id, state, code, nodes, num, partition, account, elapsed, limit, began, ended, reason = values
                found[job_id] = JobInfo(
                    job_id, base_name(state), _exit_code(code), "" if reason == "None" else reason, nodes, int(num or 0),
                    partition, account, elapsed, limit, began, "" if ended == "Unknown" else ended, "sacct",
                )  # fmt: skip
        return found


def _not_found(job_id: str, submitted: float) -> JobInfo:
    # sacct can trail sbatch by seconds: an empty reply means "not yet", and only much later "no longer".
    state = "UNKNOWN" if time.time() - submitted < TRAIL_S else "FORGOTTEN"
    return JobInfo(job_id, state, source="none")


def _exit_code(text: str) -> int | None:
    """sacct's "code:signal" as a shell would give it; None when there is none yet."""
    code, _, signal = text.partition(":")
    if not code.isdigit():
        return None
    return int(code) or (128 + int(signal) if signal.isdigit() and int(signal) else 0)


def _call(command: Sequence[str], cwd: os.PathLike[str] | None = None, env: dict[str, str] | None = None) -> str:
    """Run one Slurm command and give its standard output.

    Raises:
        UsageError: the command is not installed.
        FailedError: it failed; the error carries what it said.
        TimeOutError: no answer within CALL_TIMEOUT_S seconds.
    """
    try:
        done = subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, errors="replace", timeout=CALL_TIMEOUT_S, check=False
        )  # fmt: skip
    except FileNotFoundError:
        raise UsageError(f"no {command[0]} on PATH: run this on the cluster's login node") from None
    except subprocess.TimeoutExpired:
        raise TimeOutError(
            f"{command[0]} did not answer in {CALL_TIMEOUT_S} s; is the Slurm controller down?"
        ) from None
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split()) or "nothing"
        raise FailedError(f"{command[0]} refused (exit code {done.returncode}): {said}")
    return done.stdout
