"""What a rank's training tells the agent that watches it: how far it is, what it is doing, and why it failed.

A page of memory that both processes map: the training writes it in a fraction of a microsecond, and what it wrote
last can be read after it was killed. Without an agent (tests, a rank started by hand) the page is private and nobody
reads it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import mmap
import os
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

VARIABLE = "HPCDL_PULSE_FD"
SIZE = 65536
HEADER = struct.Struct("<QQdB")
"""Progress (a count of everything that was got done), step, seconds that a stop would take, phase."""
LENGTH = struct.Struct("<I")
TAKEN = SIZE - 1
"""Where the agent says that it has taken note of a failure."""

LONGEST_LINE = 2000

WAITING = "waits for the others"
PHASES = ("starts", "loads a batch", "computes", WAITING, "validates", "saves", "ends")
Blame = Literal["own", "all", "peer"]
"""Whose error it is: this rank's, all ranks' together (this one tells it), or another rank's, which tells it itself."""


@dataclass(frozen=True)
class Reading:
    """A pulse at one moment."""

    progress: int
    step: int
    stop_s: float
    phase: str


class Pulse:
    """One end of the page; the training writes, the agent reads."""

    def __init__(self, descriptor: int = -1) -> None:
        self._map = mmap.mmap(descriptor, SIZE)
        self._progress, self._step, self._stop_s, self._phase = HEADER.unpack_from(self._map)

    @classmethod
    def make(cls) -> tuple[Pulse, int]:
        """A page for a child process, with the descriptor that the child inherits."""
        if hasattr(os, "memfd_create"):  # memory: writing to a page of a file would end the training when /tmp is full
            descriptor = os.memfd_create("hpcdl-pulse")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, SIZE)
        os.set_inheritable(descriptor, True)
        return cls(descriptor), descriptor

    def phase(self, name: str) -> None:
        """Say what begins now."""
        self._phase = PHASES.index(name)
        self._write()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """In the block this rank waits for the others; afterwards it does what it did before."""
        before, self._phase = self._phase, PHASES.index(WAITING)
        self._write()
        yield
        self._phase = before
        self._write()

    def advance(self, step: int) -> None:
        """Say that something was got done: a step, a batch of a validation, a checkpoint."""
        self._progress, self._step = self._progress + 1, step
        self._write()

    def stop_takes(self, seconds: float) -> None:
        """Say how long a stop would take: the rest of a step and a checkpoint."""
        self._stop_s = seconds
        self._write()

    def fail(self, blame: Blame, line: str, text: str) -> None:
        """Say why the training failed.

        Args:
            blame: whose error it is.
            line: the error in one line.
            text: its traceback.
        """
        start = HEADER.size + LENGTH.size
        line, text = _readable(line[:LONGEST_LINE]), _readable(text[-SIZE:])
        while len(record := json.dumps({"blame": blame, "line": line, "text": text}).encode()) > TAKEN - start:
            text = text[len(text) // 8 + 1 :]  # its end tells most
        self._map[start : start + len(record)] = record
        LENGTH.pack_into(self._map, HEADER.size, len(record))  # last: the agent may be looking

    def wait_taken(self, seconds: float) -> None:
        """Wait for so long that the agent has told the failure: once this process has gone, MPI may end the agent as well."""
        until = time.monotonic() + seconds
        while not self._map[TAKEN] and time.monotonic() < until:
            time.sleep(0.005)

    def taken(self) -> None:
        """Say that the failure was told."""
        self._map[TAKEN] = 1

    def read(self) -> Reading:
        """What the training said last."""
        progress, step, stop_s, phase = HEADER.unpack_from(self._map)
        return Reading(progress, step, stop_s, PHASES[phase])

    def failure(self) -> dict[str, Any] | None:
        """What the training said of its failure; None when it said nothing (it was killed, or crashed in C)."""
        (length,) = LENGTH.unpack_from(self._map, HEADER.size)
        start = HEADER.size + LENGTH.size
        record: dict[str, Any] | None = json.loads(self._map[start : start + length]) if length else None
        return record

    def _write(self) -> None:
        HEADER.pack_into(self._map, 0, self._progress, self._step, self._stop_s, self._phase)


def _readable(text: str) -> str:
    """The text with what no UTF-8 can hold (half a character, a file name's odd bytes) as \\udc80 and the like."""
    return text.encode(errors="backslashreplace").decode()


@functools.cache
def own_pulse() -> Pulse:
    """The page that this process's agent gave, or a private one."""
    return Pulse(int(os.environ.get(VARIABLE, "-1")))
