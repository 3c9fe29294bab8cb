"""Saving beside the training: the state is copied to host memory, and a thread of rank 0 writes it while training goes on."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdl.train import checkpoint
from hpcdl.train.checkpoint import Retention


@dataclass(frozen=True)
class Saved:
    """One checkpoint that was committed: what it cost."""

    step: int
    stall_s: float
    write_s: float
    num_bytes: int


class Saver:
    """Rank 0's writer of checkpoints; one write is under way at a time, a second one waits for it.

    Attributes:
        error: why the last write failed; empty when it did not.
        saved: committed checkpoints that nobody has taken note of yet.
    """

    def __init__(self, folder: Path, retention: Retention, permit: Callable[[], None], asynchronous: bool) -> None:
        self.folder, self.retention, self.permit, self.asynchronous = folder, retention, permit, asynchronous
        self.error = ""
        self.saved: list[Saved] = []
        self._thread: threading.Thread | None = None
        self._fatal: BaseException | None = None

    def save(self, step: int, state: Mapping[str, Any], ranks: Sequence[bytes], best: bool, began: float) -> None:
        """Copy the state and begin to write it.

        Args:
            best: whether this is to be the best one from now on.
            began: time.perf_counter() when the training stopped for it.
        """
        self.wait()
        copied = checkpoint.on_cpu(state) if self.asynchronous else state

        def work() -> None:
            start = time.perf_counter()
            try:
                num_bytes = checkpoint.write(self.folder, step, copied, ranks, self.permit)
                if best:
                    checkpoint.point(self.folder, checkpoint.BEST, step)
                checkpoint.prune(self.folder, self.retention)
            except OSError as error:
                self.error = self._explain(step, error)
            except BaseException as error:  # raised in the training thread by `wait`
                self._fatal = error
            else:
                self.error = ""
                write_s = time.perf_counter() - start
                stall_s = stalled if self.asynchronous else stalled + write_s
                self.saved.append(Saved(step, stall_s, write_s, num_bytes))

        stalled = time.perf_counter() - began
        if self.asynchronous:
            self._thread = threading.Thread(target=work, name="hpcdl-saver")
            self._thread.start()
        else:
            work()

    def mark_best(self, step: int) -> None:
        """Let BEST name the checkpoint of this step, which was begun before."""
        self.wait()
        try:
            if not self.error:
                checkpoint.point(self.folder, checkpoint.BEST, step)
                checkpoint.prune(self.folder, self.retention)
        except OSError as error:
            self.error = self._explain(step, error)

    def give_up(self, seconds: float) -> None:
        """Let a write that is under way come to its end, for at most so long: this process is about to end in failure."""
        if self._thread is not None:
            self._thread.join(seconds)

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            HpcdlError: this process may not write here any more.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._fatal is not None:
            raise self._fatal

    def _explain(self, step: int, error: OSError) -> str:
        try:
            free = f"{shutil.disk_usage(self.folder).free / 2**20:.0f} MB free"
        except OSError:
            free = "the folder is gone"
        return f"checkpoint of step {step} could not be written to {self.folder}: {error.strerror or error} ({free})"
