"""The agent of one rank: `python -m hpcdl.watch.rank RUN ATTEMPT` starts the rank's training and stays until it has ended.

It imports next to nothing, so that it costs a rank some 40 ms and 10 MB. What it prints is what a user should read
first: of all the errors that one failure causes on all ranks, only the one that came first, from the rank that knows
about it.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from hpcdl.attempts import CONTINUE_ME, AttemptDir, attempt_of, beat_s
from hpcdl.pulse import VARIABLE, Pulse
from hpcdl.ranks import node_name, own_rank, own_size
from hpcdl.rundir import RunDir
from hpcdl.watch.neighbours import Progress, Silence, holding_up

NODE_TIMEOUT_S = float(os.environ.get("HPCDL_NODE_TIMEOUT_S", "60"))
"""A rank that has not beaten for so long is lost; shared file systems do hang for half a minute."""

SUSPECT_S = 8.0
"""The same, once the training itself has lost touch with another rank."""

STALL_TIMEOUT_S = float(os.environ.get("HPCDL_STALL_TIMEOUT_S", "1800"))
"""A training in which no rank gets anything done for so long hangs."""

PEER_WAIT_S = 20.0
"""A rank that only knows that another one is gone waits so long for somebody who knows more."""

CRASH_WAIT_S = 0.3
"""The same for one that crashed without a word: MPI may end it so when another one is gone, and may end this agent soon."""

HOLD_S, LONGEST_HOLD_S = 1.5, 90.0
"""Lines on stderr are held back so long at least, and until the training has got something done since, but no longer than this: if
another rank fails meanwhile, they are its echo."""

GRACE_S = 12.0
"""A training whose peer has failed may finish a checkpoint for so long."""


OWN_KINDS = ("error", "killed", "crash", "communication")
"""Failures of this agent's own rank."""

UNHEARD = (-signal.SIGTERM, -signal.SIGUSR1)
"""How a training ends that is asked to stop while it still starts."""


class Agent:
    """Watches one rank."""

    def __init__(self, run: RunDir, attempt: AttemptDir) -> None:
        self.attempt = attempt
        self.rank, self.size, self.host = own_rank(), own_size(), node_name()
        self.every_s = beat_s(self.size)
        self.silence, self.progress = Silence(2 * self.every_s), Progress(2 * self.every_s)
        self.asked: list[int] = []
        self.count, self.state, self.next_look = 0, "runs", 0.0
        self.told: dict[str, dict[str, Any]] = {}
        self.failed_since: float | None = None
        self.held: collections.deque[tuple[float, int, bytes]] = collections.deque()
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)
        # A child's end must wake the agent at once: of several that see an end, the first one tells it.
        self.woken, writer = os.pipe()
        for end in (self.woken, writer):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self.pulse, descriptor = Pulse.make()
        environment = {
            **os.environ,
            VARIABLE: str(descriptor),
            "HPCDL_ATTEMPT": attempt.name,
            "HPCDL_STARTED": str(time.time()),
            "HPCDL_JOB_ID": attempt.name.rpartition("-")[0],
        }
        self.child = subprocess.Popen(
            [sys.executable, "-P", "-m", "hpcdl.train", str(run.path)],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=0, env=environment, pass_fds=(descriptor,),
            preexec_fn=_die_with_parent,
        )  # fmt: skip
        os.close(descriptor)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked.append(number)

    def watch(self) -> int:
        """Stay until the training has ended; the exit code for the launcher.

        A training that was stopped and can go on ends well as far as launchers are concerned: they would kill the other ranks.
        """
        assert self.child.stderr is not None
        os.set_blocking(self.child.stderr.fileno(), False)
        ended: float | None = None
        sources: list[Any] = [self.woken, self.child.stderr]
        while True:
            ready = select.select(sources, [], [], 0.1)[0]
            if self.woken in ready:
                os.read(self.woken, 1024)
            if self.child.stderr in ready and not self._read_stderr():
                sources.remove(self.child.stderr)
            code, now = self.child.poll(), time.monotonic()
            if code is not None and ended is None:
                ended = now
                self._read_stderr()
                well = code in (0, CONTINUE_ME) or (self.asked and code in UNHEARD)
                self.state = "ended" if well else "lost"
            self._pass_signals()
            if now >= self.next_look or ended == now:
                self.next_look = now + self.every_s
                self._look(now)
            self._release_stderr(now)
            if code is None:
                self._tell_own()
                self._end_when_hopeless(now)
            elif (verdict := self._verdict(code, now - (ended or now))) is not None:
                self._clear_stage()
                return verdict

    def _clear_stage(self) -> None:
        """Remove the node's copy of the data set when the training that made it could not."""
        with contextlib.suppress(OSError):
            folder = Path(self.attempt.stage_note(self.host).read_text(encoding="utf-8"))
            if folder.is_dir():
                from hpcdl.shards.staging import remove

                remove(folder)

    def _pass_signals(self) -> None:
        # Launchers signal the process group or only this process; the training sets a flag, so twice does no harm.
        if "stop" in self.told and signal.SIGUSR1 not in self.asked:
            self.asked.append(signal.SIGUSR1)
        if self.asked and self.child.poll() is None and self.state == "runs":
            self.state = "stops"
            self.child.send_signal(signal.SIGUSR1)

    def _look(self, now: float) -> None:
        """Beat, see what the others have to say, and who is silent."""
        self.count += 1
        pulse = self.pulse.read()
        beat = {
            "count": self.count, "state": self.state, "rank": self.rank, "host": self.host, "pid": self.child.pid,
            "phase": pulse.phase, "progress": pulse.progress, "step": pulse.step, "stop_s": round(pulse.stop_s, 3),
            "code": self.child.poll(),
        }  # fmt: skip
        self.attempt.beat(self.rank, beat)
        self.told = self.attempt.said()
        if "failure" in self.told and self.failed_since is None:
            self.failed_since = now
        if "failure" in self.told or self.state == "ended":
            return
        others = range(1, self.size) if self.rank == 0 else (0,)
        self.silence.look({rank: self.attempt.read_beat(rank) for rank in others}, now)
        limit_s = max(SUSPECT_S if self.state == "lost" else NODE_TIMEOUT_S, 3 * self.every_s)
        lost = self.silence.lost(limit_s)
        if lost:
            self._tell_lost(lost)
        elif self.rank == 0:
            beats = {0: beat, **self.silence.beats}
            seconds = self.progress.look(beats.values(), now)
            if seconds > STALL_TIMEOUT_S:
                self._tell_stalled(holding_up(beats, self.size), beats, seconds)

    def _tell_lost(self, lost: list[int]) -> None:
        beat, seconds = self.silence.beats[lost[0]], self.silence.seconds[lost[0]]
        more = f" (with ranks {', '.join(map(str, lost[1:]))})" if len(lost) > 1 else ""
        line = f"no sign of life for {seconds:.0f} s: its node is down, or its processes were killed"
        self._claim("node-lost", line, rank=lost[0], host=beat["host"], step=beat["step"], who_else=more)

    def _tell_stalled(self, ranks: list[int], beats: dict[int, Any], seconds: float) -> None:
        line = f"nobody got anything done for {seconds:.0f} s"
        if len(ranks) == 1 and ranks[0] in beats:
            beat = beats[ranks[0]]
            line = f"{beat['phase']} for {seconds:.0f} s, and the others wait for it"
            self._claim("stalled", line, rank=ranks[0], host=beat["host"], step=beat["step"])
        elif ranks and ranks[0] not in beats:
            self._claim("stalled", f"{line}; this rank never came to life", rank=ranks[0], host="?")
        else:
            # No single node is to blame.
            phases = "; ".join(f"rank {rank} on {beats[rank]['host']} {beats[rank]['phase']}" for rank in ranks[:4])
            self._claim("stalled", f"{line}: {phases or 'all wait for each other'}", host="")

    def _claim(self, kind: str, line: str, text: str = "", who_else: str = "", **where: Any) -> bool:
        place = {"rank": self.rank, "host": self.host, "step": self.pulse.read().step, **where}
        failure = {"kind": kind, "size": self.size, "line": line, "text": text, **place}
        if not self.attempt.claim(failure):
            return False
        self.failed_since = time.monotonic()
        one_of = f"rank {place['rank']} of {self.size} on {place['host']}{who_else} failed"
        who = f"all {self.size} ranks stopped" if kind == "agreed" or not place["host"] else one_of
        report = f"hpcdl: {who} after step {place['step']}: {line}\n"
        _print((report + "".join(f"  | {row}\n" for row in text.splitlines())).encode())
        while self.held and kind in OWN_KINDS:  # what it said itself before it failed belongs to the report
            _print(b"  | " + self.held.popleft()[2].rstrip(b"\r\n") + b"\n")
        return True

    def _tell_own(self) -> None:
        """Tell a failure of which the training has just told, before it is gone."""
        said = self.pulse.failure()
        if said and (self.failed_since is not None or self._tell(said)):
            self.pulse.taken()

    def _tell(self, said: dict[str, Any]) -> bool:
        """Tell what the training said, unless another rank tells it."""
        if said["blame"] == "peer":
            return False
        self._read_stderr()
        self._claim("agreed" if said["blame"] == "all" else "error", said["line"], said["text"])
        return True

    def _verdict(self, code: int, seconds: float) -> int | None:
        """The agent's exit code once it is clear who tells what; None while that is open."""
        if code in (0, CONTINUE_ME):
            self._release_stderr(float("inf"))
            return 0
        said = self.pulse.failure()
        if "failure" in self.told or self.attempt.failure():
            self._keep_stderr()
            return 1
        if said and self._tell(said):
            return 1
        if self.asked and (said or code in UNHEARD):
            return 0  # asked to stop before it, or the rank that it lost, could listen: nothing is lost
        if code == -signal.SIGKILL:
            self._claim("killed", f"killed by SIGKILL {_memory()}")
            return 128 + signal.SIGKILL
        # Whoever has fallen silent must have had the time to be missed.
        if seconds < (max(PEER_WAIT_S, 5 * self.every_s + 5) if said else CRASH_WAIT_S):
            return None
        if said:
            self._claim("communication", said["line"], said["text"])
            return 1
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        self._claim("crash", how)
        return 128 - code if code < 0 else code

    def _end_when_hopeless(self, now: float) -> None:
        """End a training whose peer is gone, unless it ends by itself in time."""
        if self.failed_since is not None and now - self.failed_since > GRACE_S:
            with contextlib.suppress(ProcessLookupError):
                self.child.kill()

    def _read_stderr(self) -> bool:
        """Take what the training wrote; False when it has closed its stderr."""
        assert self.child.stderr is not None
        while True:
            try:
                data = self.child.stderr.read(65536)
            except ValueError:
                return False
            if data is None:
                return True
            if not data:
                return False
            for line in data.splitlines(keepends=True):
                # Programs write a line in pieces.
                begun = self.held.pop()[2] if self.held and not self.held[-1][2].endswith((b"\n", b"\r")) else b""
                self.held.append((time.monotonic(), self.pulse.read().progress, begun + line))

    def _release_stderr(self, now: float) -> None:
        if self.failed_since is not None:
            self._keep_stderr()
        progress = self.pulse.read().progress
        while self.held:
            age, before = now - self.held[0][0], self.held[0][1]
            fresh = age < HOLD_S or (age < LONGEST_HOLD_S and 0 < progress <= before)
            if fresh and len(self.held) < 1000:
                return
            _print(self.held.popleft()[2])

    def _keep_stderr(self) -> None:
        """Put what another rank's failure made this one say where it is found, and not in the way."""
        if self.held:
            with contextlib.suppress(OSError), self.attempt.stderr_file(self.rank).open("ab") as file:
                file.writelines(line for *_, line in self.held)
            self.held.clear()


def _memory() -> str:
    """How large the training had grown: the most frequent reason for a SIGKILL is that it was too large."""
    import resource

    peak_kb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return f"(out of memory? it had grown to {peak_kb / 2**20:.1f} GB)"


def _print(data: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(2, data)


def _die_with_parent() -> None:
    # Linux: an agent that is killed takes its training along; elsewhere the launcher has to.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    _run = RunDir(Path(sys.argv[1]))
    sys.exit(Agent(_run, attempt_of(_run, sys.argv[2])).watch())
