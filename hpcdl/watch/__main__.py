"""`python -m hpcdl.watch RUN LAUNCHER… `: one attempt at a run, as the job script's last act.

Takes the run's lock, starts the launcher, hands a stop on to the ranks, ends a launcher that outlives a failure, and
decides whether the job goes back to the queue.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from hpcdl.attempts import AttemptDir, attempt_of, beat_s
from hpcdl.batch.local import PREFIX
from hpcdl.batch.queue import end_time, may_be_active, requeue
from hpcdl.errors import HpcdlError
from hpcdl.lock import release_lock, take_lock
from hpcdl.ranks import node_name
from hpcdl.resources import Resources
from hpcdl.rundir import RunDir, newest_step
from hpcdl.watch.decide import Decision, Ended, decide
from hpcdl.watch.launch import launch

LAUNCH_PAUSES_S = (2, 10)
"""Before a launch is tried again."""

REQUEUE_S = 120.0
"""Slurm ends a job that it requeues within this time."""

MARGIN_S = 10.0
"""Seconds before the end of the walltime that stay unused: Slurm's clock and the launcher's end."""

CLOCK_S = 5.0
"""By how much this clock may differ from Slurm's."""

EARLY_S = 120.0
"""Slurm sends the walltime's signal up to a minute early; what comes earlier was sent by somebody."""


class Attempt:
    """One attempt, seen from the job's first node."""

    def __init__(self, run: RunDir, command: list[str]) -> None:
        self.run, self.command, self.spec = run, command, run.spec()
        self.job_id = os.environ.get("HPCDL_JOB_ID", "by-hand")
        if self.job_id == "by-hand":
            self.job_id = f"by-hand-{node_name()}-{os.getpid()}"
        self.restart = int(os.environ.get("SLURM_RESTART_COUNT", os.environ.get("HPCDL_RESTART_COUNT", "0")))
        self.dir: AttemptDir = attempt_of(run, f"{self.job_id}-{self.restart}")
        self.asked: list[int] = []
        self.stop, self.stop_at, self.handed_on = "", 0.0, False
        self.ends: float | None = None
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked.append(number)

    def main(self) -> int:
        """Run it to its end; the job's exit code."""
        lock = take_lock(
            self.run, self.dir.name, self.job_id, self.restart, lambda job_id: may_be_active(self.run, job_id)
        )
        try:
            from_step = newest_step(self.run)
            self._record("began", from_step=from_step, nodes=os.environ.get("SLURM_JOB_NODELIST", node_name()))
            code = self._launch_patiently()
            decision = self._close(from_step, code)
        finally:
            release_lock(self.run, lock)
        if decision.requeue and not self._cancelled():
            self._requeue()
        return decision.code

    def _record(self, event: str, **details: Any) -> None:
        """An event of this attempt; a full disk must not end the attempt as well."""
        try:
            self.run.record(event, self.job_id, attempt=self.dir.name, **details)
        except OSError as error:
            print(f"hpcdl: {self.run.attempts_file}: {error.strerror}; {event} {details}", file=sys.stderr, flush=True)

    def _launch_patiently(self) -> int:
        """Launch; again when that fails and this job has been launched before, by the same launcher.

        After a node was lost, what its last step left behind can keep Slurm from launching a step of the same number there.
        """
        proven = self._started(self.job_id)
        for pause_s in LAUNCH_PAUSES_S if proven else ():
            code = self._launch()
            if code == 0 or self.stop or self.dir.failure() or self._started(self.job_id, self.dir.name):
                return code
            print(f"hpcdl: the launcher ended with code {code}; once more in {pause_s} s", file=sys.stderr, flush=True)
            time.sleep(pause_s)
        return self._launch()

    def _started(self, job_id: str, attempt: str | None = None) -> bool:
        """Whether a training of this job, or of one of its attempts, came to its first step."""
        return any(
            event["event"] == "started" and event["job_id"] == job_id and attempt in (None, event["attempt"])
            for event in self.run.events()
        )

    def _launch(self) -> int:
        return launch(self.command, self.dir, self._hand_on)

    def _hand_on(self) -> None:
        """Hand a stop on to the ranks: a cancellation at once, the end of the walltime as late as can be."""
        if self._cancelled() and self.stop != "cancelled":
            self.stop, self.stop_at = "cancelled", 0.0
        elif not self.stop and self.asked:
            self.ends = end_time(self.job_id)
            self.stop, self.stop_at = "walltime", self._latest_stop()
            self._record("warned", stop_in_s=round(self.stop_at - time.time()))
        if self.stop and not self.handed_on and time.time() >= self.stop_at:
            try:
                self.dir.say("stop", why=self.stop)
            except OSError:
                return  # tried again in a moment
            self.handed_on = True

    def _cancelled(self) -> bool:
        """Whether somebody asked for the end; a SIGTERM when the walltime is over is Slurm's own."""
        return signal.SIGTERM in self.asked and (self.ends is None or time.time() < self.ends - CLOCK_S)

    def _latest_stop(self) -> float:
        """When the ranks must be asked to stop: the lead time that was chosen, or three times what a stop took so far.

        Before that is known it is the script's own lead time. At once when a user, not Slurm, sent the signal.
        """
        now, ends = time.time(), self.ends
        resources = Resources(**self.spec["resources"])
        if ends is None or ends - now > resources.lead_s + EARLY_S:
            return now
        stop_s = self._stop_s()
        if resources.signal is not None or not stop_s:
            return ends - resources.lead_s
        return ends - MARGIN_S - 2 * beat_s(resources.num_tasks) - 3 * stop_s

    def _stop_s(self) -> float:
        """Seconds that a stop takes, as measured in this attempt or an earlier one; 0 when no checkpoint was made yet."""
        beat = self.dir.read_beat(0) or {}
        earlier = [float(event["stop_s"]) for event in self.run.events() if event["event"] == "closed"]
        return float(beat.get("stop_s", 0)) or next(filter(None, reversed(earlier)), 0.0)

    def _close(self, from_step: int, code: int) -> Decision:
        events = self.run.events()
        mine = [event for event in events if event.get("attempt") == self.dir.name]
        said = [event for event in mine if event["event"] == "ended"]
        started = self._started(self.job_id, self.dir.name)
        failure = self.dir.failure() or (self._post_mortem() if not self.stop and not said else None)
        why = said[-1]["why"] if said else ""
        # Ranks that stopped before they were asked to were asked by somebody else: Slurm's SIGTERM for a cancelled job.
        stop = self.stop if self.handed_on else "cancelled" if self._cancelled() else ""
        ended = Ended(code, failure, started, why, stop, from_step, newest_step(self.run))
        resources = self.spec["resources"]
        allowed = resources["max_requeues"] if resources["requeue"] and self._may_requeue() else 0
        decision = decide(ended, self.job_id, events, allowed, self.run.name)
        short = {key: failure[key] for key in ("kind", "rank", "host", "step", "line")} if failure else None
        self._record(
            "closed", code=decision.code, why=decision.why, failure=short, from_step=from_step, to_step=ended.to_step,
            stop_s=self._stop_s(),
        )  # fmt: skip
        advice = f"; {decision.advice}" if decision.advice else ""
        print(f"hpcdl: attempt {self.dir.name} of {self.run.name}: {decision.why}{advice}", file=sys.stderr, flush=True)
        return decision

    def _post_mortem(self) -> dict[str, Any] | None:
        """What the beats tell when nobody had the time to tell anything: the one rank whose training had ended badly."""
        num_tasks = Resources(**self.spec["resources"]).num_tasks
        beats = [beat for rank in range(num_tasks) if (beat := self.dir.read_beat(rank)) and beat["state"] == "lost"]
        if len(beats) != 1:
            return None
        beat, code = beats[0], beats[0]["code"]
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        failure = {"kind": "crash", "size": num_tasks, "line": how, "text": "", **beat}
        where = f"rank {beat['rank']} of {num_tasks} on {beat['host']}"
        print(f"hpcdl: {where} failed after step {beat['step']}: {how}", file=sys.stderr, flush=True)
        return failure

    def _may_requeue(self) -> bool:
        return self.job_id.startswith(PREFIX) or self.job_id.isdigit()

    def _requeue(self) -> None:
        """Put the job back in the queue, unless Slurm has done so already or has ended the job."""
        self._record("requeued")
        try:
            requeue(self.job_id)
        except HpcdlError as error:
            self._record("refused", why=str(error))
            print(
                f"hpcdl: cannot be put back in the queue: {error}; `hpcdl resume {self.run.name}` goes on",
                file=sys.stderr,
            )
            return
        until = time.monotonic() + REQUEUE_S
        while self.job_id.isdigit() and signal.SIGTERM not in self.asked and time.monotonic() < until:
            time.sleep(0.1)  # Slurm ends this process meanwhile


if __name__ == "__main__":
    try:
        sys.exit(Attempt(RunDir(Path(sys.argv[1])), sys.argv[2:]).main())
    except HpcdlError as _error:
        print(f"hpcdl: {_error}", file=sys.stderr)
        sys.exit(_error.exit_code)
    except OSError as _error:
        print(f"hpcdl: {_error.filename or sys.argv[1]}: {_error.strerror or _error}", file=sys.stderr)
        sys.exit(1)
