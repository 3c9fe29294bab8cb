"""Starting the ranks by a cluster's launcher, and not waiting for ever for its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from hpcdl.attempts import BEAT_S, AttemptDir
from hpcdl.errors import FailedError

GRACE_S = 15.0
"""A launcher may take so long to end after a failure was found; then it is ended. Longer than the agents' own patience."""

PARTING_S = 120.0
"""The same after rank 0 has ended: the others have nothing left to do."""


def launch(command: Sequence[str], attempt: AttemptDir, tick: Callable[[], None] = lambda: None) -> int:
    """Run a launcher to its end, with the attempt's name as its last argument; its exit code, as a shell would give it.

    Args:
        tick: called about ten times a second meanwhile.

    Raises:
        FailedError: there is no such program.
    """
    attempt.make()
    try:
        launcher = subprocess.Popen([*command, attempt.name], stdin=subprocess.DEVNULL, process_group=0)
    except OSError as error:
        raise FailedError(f"{command[0]}: cannot be started: {error.strerror}") from None
    try:
        return _watch(launcher, attempt, tick)
    finally:
        if launcher.poll() is None:
            _signal(launcher, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                launcher.wait(5)


def _watch(launcher: subprocess.Popen[bytes], attempt: AttemptDir, tick: Callable[[], None]) -> int:
    count, next_look = 0, 0.0
    hopeless: float | None = None
    last_words = [(0.0, signal.SIGTERM), (4.0, signal.SIGKILL)]
    while (code := launcher.poll()) is None:
        now = time.monotonic()
        if now >= next_look:
            count, next_look = count + 1, now + BEAT_S
            attempt.beat("main", {"count": count})
            if "failure" in attempt.said():
                hopeless = min(hopeless or float("inf"), now + GRACE_S)
            elif hopeless is None and (attempt.read_beat(0) or {}).get("state") == "ended":
                hopeless = now + PARTING_S
        tick()
        if hopeless is not None and last_words and now > hopeless + last_words[0][0]:
            _signal(launcher, last_words.pop(0)[1])
        time.sleep(0.1)
    return code if code >= 0 else 128 - code


def _signal(launcher: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(launcher.pid, number)
