"""One attempt at a run: its folder, through which the processes on all nodes tell each other that they live, and why they end.

runs/<name>/attempts/<job id>-<restart>/
  control        one JSON line each: a stop that was asked for, a failure that was found; made empty at the start
  failure.json   the first failure that anybody found; who creates it tells it, the others keep quiet
  beat-00003     of rank 3, beat-main of the first node: rewritten every few seconds, in place
  stderr-00003   what rank 3 wrote to stderr after another rank had failed
  stage-n3       where node n3 keeps its copy of the data set, when it has one

Everything is plain files on the file system that all nodes see: no ports, no clocks that must agree. Files are opened
anew for every look, which makes NFS and Lustre clients ask the server.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdl.rundir import RunDir, append_line, read_lines

CONTINUE_ME = 85
"""Exit code of a training that was asked to stop, saved its state and can go on (sysexits has none for it; 85 is ERESTART)."""

BEAT_S = 2.0
"""Seconds between two beats of a rank, and between two looks at what the others wrote, for up to 127 ranks."""

BEAT_WIDTH = 512


def beat_s(num_ranks: int) -> float:
    """Seconds between two beats of each of so many ranks: a shared file system's metadata server has other users, too."""
    return BEAT_S * (1 + num_ranks // 128)


@dataclass(frozen=True)
class AttemptDir:
    """An attempt's folder; its name is the job's id and its restart count."""

    path: Path

    @property
    def name(self) -> str:
        """The attempt's name."""
        return self.path.name

    @property
    def control(self) -> Path:
        """What all agents look at."""
        return self.path / "control"

    @property
    def failure_file(self) -> Path:
        """The first failure."""
        return self.path / "failure.json"

    def beat_file(self, who: int | str) -> Path:
        """The beat of a rank, or of `main`."""
        return self.path / f"beat-{who:05d}" if isinstance(who, int) else self.path / f"beat-{who}"

    def stderr_file(self, rank: int) -> Path:
        """What a rank wrote after another had failed."""
        return self.path / f"stderr-{rank:05d}"

    def stage_note(self, node: str) -> Path:
        """Where a node says in which folder its copy of the data set lies."""
        return self.path / f"stage-{node}"

    def make(self) -> None:
        """Make the folder, with an empty control file; one of the same name is emptied."""
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.iterdir():
            left.unlink()
        self.control.touch()

    def say(self, what: str, **details: Any) -> None:
        """Tell all agents: `stop` or `failure`."""
        append_line(self.control, {"what": what, **details})

    def said(self) -> dict[str, dict[str, Any]]:
        """What was told so far, by kind; the first of each kind counts. Nothing when it cannot be read now."""
        told: dict[str, dict[str, Any]] = {}
        try:
            for line in read_lines(self.control):
                told.setdefault(line["what"], line)
            # Appending is not atomic over NFS: the line in `control` may have been overwritten by another one.
            if "failure" not in told and self.failure_file.exists():
                told["failure"] = {"what": "failure"}
        except OSError:  # a shared file system that has a bad moment
            return told
        return told

    def claim(self, failure: Mapping[str, Any]) -> bool:
        """Say what went wrong, unless somebody else has done so: True for the first."""
        data = json.dumps({**failure, "time": round(time.time(), 3)}, ensure_ascii=False).encode()
        try:
            if not create_whole(self.failure_file, data):
                return False
            self.say("failure")
        except OSError:
            return True  # the disk is full, perhaps that very failure: better told twice than never
        return True

    def failure(self) -> dict[str, Any] | None:
        """The first failure, if there is one."""
        try:
            found: dict[str, Any] = json.loads(self.failure_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found

    def beat(self, who: int | str, beat: Mapping[str, Any]) -> None:
        """Write a beat; a file system that does not take it now may take the next."""
        # Reading is not atomic: half of this beat and half of the former one may well be valid JSON.
        checked = {"check": _check_sum(beat), **beat}
        data = json.dumps(checked)[: BEAT_WIDTH - 1].ljust(BEAT_WIDTH - 1) + "\n"
        with contextlib.suppress(OSError):
            descriptor = os.open(self.beat_file(who), os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(descriptor, data.encode(), 0)
            finally:
                os.close(descriptor)

    def read_beat(self, who: int | str) -> dict[str, Any] | None:
        """The newest beat; None before the first, or while it is being written."""
        try:
            found: dict[str, Any] = json.loads(self.beat_file(who).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if found.pop("check", None) == _check_sum(found) else None

    def beats(self) -> str:
        """All beats as one text: the same text later means that nobody lives."""
        texts = []
        for path in sorted(self.path.glob("beat-*")):
            with contextlib.suppress(OSError):
                texts.append(path.read_text(encoding="utf-8"))
        return "\n".join(texts)


def create_whole(path: Path, data: bytes) -> bool:
    """Create a file with its contents, or not at all; False when there is one already: of many at once, one creates it."""
    temporary = path.with_name(f".{path.name.lstrip('.')}.{os.urandom(8).hex()}")
    try:
        temporary.write_bytes(data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return temporary.stat().st_nlink == 2  # over NFS it may have been done, and only the answer was lost
        except OSError:
            # A file system without hard links: the name alone decides.
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                return False
            os.write(descriptor, data)
            os.close(descriptor)
        return True
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def attempt_of(run: RunDir, name: str) -> AttemptDir:
    """The attempt of that name."""
    return AttemptDir(run.attempts / name)


def _check_sum(beat: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(dict(beat)).encode())
