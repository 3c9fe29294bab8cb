"""Starting the ranks by a cluster's launcher, and not waiting for ever for its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from hpcdl.attempts import BEAT_S, AttemptDir

GRACE_S = 8.0
"""A launcher may take so long to end after a failure was found; then it is ended."""


def launch(command: Sequence[str], attempt: AttemptDir, tick: Callable[[], None] = lambda: None) -> int:
    """Run a launcher to its end, with the attempt's name as its last argument; its exit code, as a shell would give it.

    Args:
        tick: called about ten times a second meanwhile.
    """
    attempt.make()
    launcher = subprocess.Popen([*command, attempt.name], stdin=subprocess.DEVNULL, process_group=0)
    count, next_look = 0, 0.0
    failed_since: float | None = None
    last_words = [(GRACE_S, signal.SIGTERM), (GRACE_S + 4, signal.SIGKILL)]
    while (code := launcher.poll()) is None:
        now = time.monotonic()
        if now >= next_look:
            count, next_look = count + 1, now + BEAT_S
            attempt.beat("main", {"count": count})
            if failed_since is None and "failure" in attempt.said():
                failed_since = now
        tick()
        if failed_since is not None and last_words and now - failed_since > last_words[0][0]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(launcher.pid, last_words.pop(0)[1])
        time.sleep(0.1)
    return code if code >= 0 else 128 - code
