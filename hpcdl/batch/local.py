"""The `local` scheduler: runs the same script on this machine, under a supervising process that outlives the terminal.

`submit` starts `python -m hpcdl.batch.local RUN` in a session of its own; that process runs the script in yet another session,
enforces the walltime, and writes the `exited` event. A job's state is derived from that event and from whether the supervisor
(this process id with this start time, on this host) still lives.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hpcdl.batch.states import JobInfo, Submission
from hpcdl.errors import FailedError, UsageError
from hpcdl.resources import Resources, time_text
from hpcdl.rundir import RunDir
from hpcdl.spec import JobSpec

GRACE_S = 30
"""Between SIGTERM, which lets a training save its state, and SIGKILL; as long as Slurm's KillWait."""

PREFIX = "local-"

END_VARIABLE = "HPCDL_END_TIME"

FOREIGN = ("SLURM_", "PMI_", "PMIX_")
"""How the variables begin of an allocation that `submit` was called in: the job would take itself for that allocation's."""


class Local:
    """This machine, without Slurm."""

    def check(self, spec: JobSpec) -> None:
        """Raises UsageError when this machine has no bash, or no launcher for several ranks."""
        if shutil.which("bash") is None:
            raise UsageError(f"no bash on PATH: the scripts of cluster {spec.cluster.name} need it")
        launcher = spec.cluster.launch_words(spec.resources)[:1]
        # The job script puts the environment's own programs first; an MPI from PyPI has its mpirun there.
        places = f"{Path(spec.python).parent}:{os.environ.get('PATH', '')}"
        if launcher and shutil.which(launcher[0], path=places) is None:
            raise UsageError(
                f"no {launcher[0]} on PATH to start {spec.resources.num_tasks} ranks: run `make install`, load your "
                "site's MPI module, or use --ntasks-per-node 1"
            )

    def submit(self, run: RunDir, sbatch_arguments: Sequence[str]) -> Submission:
        """Start the supervisor; sbatch arguments mean nothing here and are refused.

        Raises:
            UsageError: there are sbatch arguments.
        """
        if sbatch_arguments:
            raise UsageError(f"--sbatch {' '.join(sbatch_arguments)!r} is for Slurm; cluster local has no sbatch")
        quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
        job_id = PREFIX + secrets.token_hex(3)
        command = [sys.executable, "-P", "-m", "hpcdl.batch.local", str(run.path), job_id]
        # Not Popen, which wants to be waited for: the supervisor outlives this process.
        pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=quiet, setsid=True)
        details = {"pid": pid, "pid_start": process_start(pid), "host": socket.gethostname()}
        return Submission(job_id, details)

    def jobs(self, runs: Sequence[tuple[RunDir, str]]) -> dict[str, JobInfo]:
        """State of each job, by job id."""
        return {job_id: self._job(run, job_id) for run, job_id in runs}

    def cancel(self, run: RunDir, job_id: str) -> None:
        """Ask the supervisor to end the job; ending one that has ended is no error.

        Raises:
            FailedError: the job runs on another host.
        """
        event = _submitted(run, job_id)
        if event.get("host") != socket.gethostname():
            raise FailedError(f"job {job_id} of {run.name} was started on {event.get('host')}; cancel it there")
        if _alive(event):
            os.kill(event["pid"], signal.SIGTERM)
        elif members := _session_of(run, job_id):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                _ask_to_end(run.spec()["kind"], os.getsid(members[0]), members)

    def may_be_active(self, run: RunDir, job_id: str) -> bool | None:
        """Whether the job may still run, asked from any host; None when this one cannot tell."""
        if _submitted(run, job_id).get("host") != socket.gethostname():
            return None
        return self._job(run, job_id).active

    def end_time(self) -> float | None:
        """When the walltime of the job that this process belongs to ends, in seconds since 1970."""
        return float(os.environ[END_VARIABLE]) if END_VARIABLE in os.environ else None

    def _job(self, run: RunDir, job_id: str) -> JobInfo:
        submitted = _submitted(run, job_id)
        running = [e for e in run.events() if e["event"] == "running" and e["job_id"] == job_id]
        began = float(running[-1]["time"] if running else submitted["time"])
        ended = next((e for e in run.events() if e["event"] == "exited" and e["job_id"] == job_id), None)
        limit = run.spec().get("resources", {}).get("time", "")
        until = float(ended["time"]) if ended else time.time()

        def info(state: str, code: int | None = None, reason: str = "") -> JobInfo:
            return JobInfo(
                job_id, state, code, reason, str(submitted.get("host", "")), 1, "local", "",
                time_text((until - began) / 60), limit, _clock(began), _clock(until) if not_active(state) else "", "local",
            )  # fmt: skip

        def not_active(state: str) -> bool:
            return state != "RUNNING"

        if ended:
            return info(ended["state"], ended["exit_code"])
        if _alive(submitted) or submitted.get("host") != socket.gethostname():
            return info("RUNNING")
        if _session_of(run, job_id):
            return info("RUNNING", None, "without its supervising process, which was killed")
        # A training's own watching process outlives the supervisor, and says how it ended.
        mine = [e for e in run.events() if e["job_id"] == job_id and e["event"] in ("closed", "requeued")]
        if mine and mine[-1]["event"] == "closed":
            ended, code = mine[-1], int(mine[-1]["code"])
            until = float(ended["time"])
            return info("COMPLETED" if code == 0 else "FAILED", code)
        return info("NODE_FAIL", None, "its supervising process is gone (killed, or the machine was restarted)")


def process_start(pid: int) -> str:
    """When a process started, as this system tells it; empty when there is none. Guards against reused process ids."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            # Fields after the command's closing bracket; state is the first, start time in clock ticks the twentieth.
            values = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if values[0] == "Z" else values[19]
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _alive(event: dict[str, Any]) -> bool:
    pid = event.get("pid")
    return isinstance(pid, int) and event.get("pid_start") == process_start(pid) != ""


def _session_of(run: RunDir, job_id: str) -> list[int]:
    """Live processes of a job, whose supervisor may be gone; they carry the job id in their environment."""
    started = [e for e in run.events() if e["event"] == "running" and e["job_id"] == job_id]
    event = started[-1] if started else None
    if event is None or event.get("host") != socket.gethostname():
        return []
    mark = f"HPCDL_JOB_ID={job_id}".encode()
    return [pid for pid in _session(event["session"]) if mark in _environment(pid).split(b"\0")]


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _submitted(run: RunDir, job_id: str) -> dict[str, Any]:
    for event in run.events():
        if event["event"] == "submitted" and event["job_id"] == job_id:
            return event
    raise FailedError(f"{run.attempts_file}: no record of job {job_id}")


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))


def supervise(run: RunDir, job_id: str) -> int:
    """Run the script, again as often as it asks to be requeued; write the `exited` event; give the job's exit code."""
    asked: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, remember)
    spec, restart = run.spec(), 0
    while True:
        state, code = _run_once(run, job_id, spec, restart, asked)
        # Also one that stopped so late that the time limit had to ask it may go on.
        if asked or code == 0 or _requeues(run, job_id) <= restart:
            break
        restart += 1
    if not state:
        # A cancellation may come between two starts.
        state = "COMPLETED" if code == 0 else "CANCELLED" if asked else "FAILED"
    run.record("exited", job_id, state=state, exit_code=code)
    return code


def _run_once(run: RunDir, job_id: str, spec: dict[str, Any], restart: int, asked: list[int]) -> tuple[str, int]:
    """One start of the script, to its end, its time limit or a SIGTERM: the state it was brought to, if any, and its code."""
    resources = Resources(**spec["resources"])
    limit_s = resources.time_min * 60
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)},
        "HPCDL_JOB_ID": job_id, "HPCDL_RESTART_COUNT": str(restart), END_VARIABLE: str(time.time() + limit_s),
    }  # fmt: skip
    with run.log(job_id).open("ab") as log:
        job = subprocess.Popen(
            ["bash", str(run.script)], cwd=run.path, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True,
        )  # fmt: skip
    run.record("running", job_id, session=job.pid, host=socket.gethostname(), restart=restart)
    deadline = time.monotonic() + limit_s
    warning: float | None = deadline - resources.lead_s if spec["kind"] == "train" else None
    state = ""
    while job.poll() is None:
        if not state and asked:
            state = "CANCELLED"
        elif not state and time.monotonic() > deadline:
            state = "TIMEOUT"
        else:
            if warning is not None and time.monotonic() > warning:
                _signal_session([job.pid], signal.SIGUSR1)
                warning = None
            time.sleep(0.1)
            continue
        _end_session(job, spec["kind"])
    code = job.returncode if job.returncode >= 0 else 128 - job.returncode
    _signal_session(_session(job.pid), signal.SIGKILL)  # a rank that outlived the script
    return state, code


def _requeues(run: RunDir, job_id: str) -> int:
    return sum(event["event"] == "requeued" and event["job_id"] == job_id for event in run.events())


def _end_session(job: subprocess.Popen[bytes], kind: str) -> None:
    _ask_to_end(kind, job.pid, _session(job.pid))
    until = time.monotonic() + GRACE_S
    while time.monotonic() < until and _session(job.pid):
        job.poll()
        time.sleep(0.1)
    _signal_session(_session(job.pid), signal.SIGKILL)
    job.wait()


def _ask_to_end(kind: str, leader: int, members: Sequence[int]) -> None:
    if kind == "train" and leader in members:
        # hpcdl.watch has taken the shell's place and hands the stop on; mpirun would give the ranks a second.
        chosen: Sequence[int] = [leader]
    else:
        # The shell would die before its children had time to end well, and the job's own code would be lost.
        chosen = [pid for pid in members if pid != leader] or members
    _signal_session(chosen, signal.SIGTERM)


def _session(leader: int) -> list[int]:
    """Live processes of a session: mpirun gives every rank a process group of its own, but not a session."""
    if not Path("/proc/self/stat").exists():
        done = subprocess.run(["ps", "-ax", "-o", "pid=,sess=,stat="], capture_output=True, text=True, check=False)
        rows = [line.split() for line in done.stdout.splitlines()]
        return [int(pid) for pid, session, state in rows if session == str(leader) and not state.startswith("Z")]
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            values = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if values[0] != "Z" and int(values[3]) == leader:
            found.append(int(entry.parent.name))
    return found


def _signal_session(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(supervise(RunDir(Path(sys.argv[1])), sys.argv[2]))
