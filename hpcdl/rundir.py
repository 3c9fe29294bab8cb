"""Every path inside a run folder, and the appending of its events; docs/run-folder.md tells what each file is."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdl.errors import UsageError

STALE_S = 600
"""A submission that takes longer than this has died: sbatch itself is given up after a minute."""


@dataclass(frozen=True)
class RunDir:
    """A run folder."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name: the folder's own."""
        return self.path.name

    @property
    def spec_file(self) -> Path:
        """run.yaml."""
        return self.path / "run.yaml"

    @property
    def script(self) -> Path:
        """job.sbatch."""
        return self.path / "job.sbatch"

    @property
    def data_file(self) -> Path:
        """data.json: the data set's manifest as it was at submission, so that a run outlives its data."""
        return self.path / "data.json"

    @property
    def request_file(self) -> Path:
        """request.json: what a preprocess or predict job reads."""
        return self.path / "request.json"

    @property
    def code(self) -> Path:
        """The folder of the job file's snapshot and what describes the code."""
        return self.path / "code"

    @property
    def attempts_file(self) -> Path:
        """attempts.jsonl."""
        return self.path / "attempts.jsonl"

    @property
    def logs(self) -> Path:
        """The folder of the jobs' output."""
        return self.path / "logs"

    @property
    def metrics_file(self) -> Path:
        """metrics.jsonl."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def attempts(self) -> Path:
        """The folder of the attempts' own folders."""
        return self.path / "attempts"

    @property
    def lock(self) -> Path:
        """.lock: which attempt may write this run."""
        return self.path / ".lock"

    def log(self, job_id: str) -> Path:
        """The log of one job."""
        return self.logs / f"{job_id}.out"

    @contextlib.contextmanager
    def submitting(self) -> Iterator[None]:
        """Keep other submissions of this run away for as long as the block lasts.

        Raises:
            UsageError: another one is under way.
        """
        lock = self.path / ".submitting"
        with contextlib.suppress(OSError):
            if time.time() - lock.stat().st_mtime > STALE_S:
                lock.unlink()
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            raise UsageError(
                f"{self.name}: is being submitted by another command; look at `hpcdl status {self.name}`"
            ) from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)

    def spec(self) -> dict[str, Any]:
        """run.yaml as a mapping.

        Raises:
            UsageError: there is none, or it is damaged.
        """
        import yaml  # not for the agents of the ranks, which start many at a time and only need paths

        try:
            values = yaml.safe_load(self.spec_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"{self.path}: not a run folder (it has no run.yaml)") from None
        except (OSError, yaml.YAMLError) as error:
            raise UsageError(f"{self.spec_file}: not readable: {error}") from None
        if not isinstance(values, dict) or "kind" not in values:
            raise UsageError(f"{self.spec_file}: not a run's specification")
        return values

    def record(self, event: str, job_id: str, **details: Any) -> None:
        """Append one event to attempts.jsonl, in a single write."""
        entry = {"event": event, "job_id": job_id, "time": round(time.time(), 3), **details}
        append_line(self.attempts_file, entry)

    def events(self) -> list[dict[str, Any]]:
        """All events, oldest first; a line that a crash cut short is left out."""
        return read_lines(self.attempts_file)

    def job_ids(self) -> list[str]:
        """Ids of the jobs submitted for this run, oldest first."""
        return [event["job_id"] for event in self.events() if event["event"] == "submitted"]


def newest_step(run: RunDir) -> int:
    """Step of the newest checkpoint, good or not; 0 when there is none."""
    steps = [path.name.removeprefix("step-") for path in run.checkpoints.glob("step-*")]
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Append one JSON object as a line, in a single write.

    Raises:
        OSError: there was no room for all of it.
    """
    data = (json.dumps(entry, ensure_ascii=False) + "\n").encode()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data  # a full disk or a crash cut the last line short: it must not spoil this one
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def write_lines(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Replace a .jsonl file by these objects, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a .jsonl file; a damaged line is left out, a missing file is empty."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    entries = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


def all_runs(folder: Path) -> list[RunDir]:
    """The run folders in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [RunDir(path) for path in folder.iterdir() if (path / "run.yaml").is_file()]
    return sorted(found, key=lambda run: (run.spec_file.stat().st_mtime, run.name))


def find_run(reference: str, folder: Path) -> RunDir:
    """The run that a name, a folder or a job id means.

    Raises:
        UsageError: there is none; lists the newest ones.
    """
    for path in (folder / reference, Path(reference)):
        if reference and (path / "run.yaml").is_file():
            return RunDir(path.resolve())
    runs = all_runs(folder)
    for run in reversed(runs):
        if reference in run.job_ids():
            return run
    newest = ", ".join(run.name for run in runs[-5:]) or "none yet"
    raise UsageError(f"no run or job {reference!r} in {folder}/; newest runs: {newest}")
