"""Checkpoints on disk: a folder a step, made under a temporary name, synced, and committed by renaming it.

checkpoints/
  step-00001200/state.pt      networks, averaged networks, optimizers, position, best so far
  step-00001200/ranks.pt      what each rank has for itself: random states, batch-norm statistics, half a line of metrics
  step-00001200/digests.json  sha256 and size of both, written last
  LAST, BEST                  names of the newest folder and of the best one

A folder is trusted only when its digests hold. One that does not is set aside as damaged-step-…, and the next newest
serves.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpcdl.errors import FailedError

LAST, BEST = "LAST", "BEST"
"""Names of pointers; LAST is for people and other programs, hpcdl itself goes by digests."""

MINE = secrets.token_hex(4)
"""Part of this process's temporary names: a writer that was taken over must not touch those of its successor."""

READ_PAUSES_S = (0.5, 2.0, 5.0)
"""A shared file system may refuse to read for a moment; that does not make a checkpoint a damaged one."""

STATE, RANKS, DIGESTS = "state.pt", "ranks.pt", "digests.json"


class DamagedError(FailedError):
    """A checkpoint's files are not what was written."""


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest `last`, every one at a multiple of `every` steps (0: none), and the best."""

    last: int
    every: int


def name_of(step: int) -> str:
    """The folder's name of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("step-"))


def write(folder: Path, step: int, state: Mapping[str, Any], ranks: Sequence[bytes], permit: Callable[[], None]) -> int:
    """Write and commit the checkpoint of one step; afterwards it is there whole, or as if nothing had been tried.

    Args:
        state: what state.pt holds, on the CPU.
        ranks: by rank, what `to_bytes` made of its own state.
        permit: called just before the commit; raises when this process must not write here any more.

    Returns:
        Its size in bytes.

    Raises:
        OSError: it could not be written (disk full, quota); the former checkpoints are intact.
    """
    temporary = folder / f".{name_of(step)}.{MINE}.tmp"
    final = folder / name_of(step)
    try:
        temporary.mkdir(parents=True)
        digests = {
            STATE: _write(temporary / STATE, dict(state)),
            RANKS: _write(temporary / RANKS, [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in ranks]),
        }
        _put(temporary / DIGESTS, json.dumps(digests).encode())
        _sync(temporary)
        pointer = _draft(folder, LAST, step)  # all that takes room comes before the commit
        permit()
        former = folder / f".{name_of(step)}.{MINE}.old.tmp"
        if final.exists():  # a validation made the same step worth keeping, or a damaged one could not be moved
            final.rename(former)
        temporary.rename(final)
        shutil.rmtree(former, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        (folder / f".{LAST}.{MINE}.tmp").unlink(missing_ok=True)
        raise
    pointer.replace(folder / LAST)
    _sync(folder)
    return sum(entry["num_bytes"] for entry in digests.values())


def point(folder: Path, pointer: str, step: int) -> None:
    """Let LAST or BEST name the checkpoint of a step."""
    _draft(folder, pointer, step).replace(folder / pointer)
    _sync(folder)


def pointed(folder: Path, pointer: str) -> Path | None:
    """The checkpoint that LAST or BEST names, if it is there."""
    try:
        found = folder / (folder / pointer).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return found if found.name.startswith("step-") and found.is_dir() else None


def prune(folder: Path, retention: Retention) -> None:
    """Delete what need not stay."""
    best = pointed(folder, BEST)
    for old in checkpoints(folder)[: -retention.last]:
        if old != best and not (retention.every and step_of(old) % retention.every == 0):
            with contextlib.suppress(OSError):
                _discard(old)


def clear_unfinished(folder: Path) -> None:
    """Remove what writers that were killed have left; only for one that has the folder to itself."""
    for left in folder.glob(".*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """All committed checkpoints, oldest first; they may be damaged."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdecimal() and path.is_dir()]
    return sorted((path for path in found if path.name == name_of(step_of(path))), key=step_of)


def verify(checkpoint: Path) -> None:
    """Compare a checkpoint with its digests.

    Raises:
        DamagedError: a file is missing or is not what was written; the message says which.
        FailedError: a file cannot be read, also not some seconds later.
    """
    pauses = iter(READ_PAUSES_S)
    while True:
        try:
            _verify(checkpoint)
        except OSError as error:
            pause_s = next(pauses, None)
            if pause_s is None:
                raise FailedError(f"{error.filename or checkpoint}: cannot be read: {error.strerror}") from None
            time.sleep(pause_s)
        else:
            return


def _verify(checkpoint: Path) -> None:
    try:
        digests = json.loads((checkpoint / DIGESTS).read_text(encoding="utf-8"))
        entries = {name: (digests[name]["num_bytes"], digests[name]["sha256"]) for name in (STATE, RANKS)}
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise DamagedError(f"{checkpoint}: {DIGESTS} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{checkpoint}: {DIGESTS} is not readable: {error}") from None
    for name, (num_bytes, sha256) in entries.items():
        try:
            size = (checkpoint / name).stat().st_size
            if size != num_bytes:
                raise DamagedError(f"{checkpoint}: {name} has {size} bytes, {num_bytes} were written")
            with (checkpoint / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise DamagedError(f"{checkpoint}: {name} is missing") from None
        if found != sha256:
            raise DamagedError(f"{checkpoint}: {name} is not what was written (its digest differs)")


def newest_good(folder: Path, say: Callable[[str], None], set_aside: bool = False) -> Path | None:
    """The newest checkpoint whose digests hold; None when there is none.

    Args:
        say: gets one line for each damaged one.
        set_aside: whether to rename damaged ones, so that they are neither counted nor tried again.
    """
    for found in reversed(checkpoints(folder)):
        try:
            verify(found)
        except DamagedError as error:
            say(f"damaged checkpoint, falling back to an older one: {error}")
            if set_aside:
                with contextlib.suppress(OSError):
                    _set_aside(found)
            continue
        return found
    return None


def load(checkpoint: Path) -> dict[str, Any]:
    """state.pt of a checkpoint, on the CPU; nothing in it can run code.

    Raises:
        DamagedError: it is not readable.
    """
    with _reading(checkpoint / STATE) as path:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def load_rank(checkpoint: Path, rank: int) -> dict[str, Any]:
    """What one rank had for itself; raises as `load` does."""
    with _reading(checkpoint / RANKS) as path:
        data = torch.load(path, map_location="cpu", weights_only=True)[rank].numpy().tobytes()
        own: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return own


def weights_digest(state: Mapping[str, Any]) -> str:
    """sha256 over all weights and statistics of a state.pt."""
    digest = hashlib.sha256()
    for kind in ("networks", "averaged"):
        for name, network in sorted(state[kind].items()):
            for key, tensor in sorted(network.items()):
                digest.update(f"{kind}.{name}.{key}:{tensor.dtype}".encode())
                digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def to_bytes(content: Mapping[str, Any]) -> bytes:
    """Tensors and plain values as bytes, for `write`."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    return buffer.getvalue()


def on_cpu(value: Any) -> Any:
    """A copy of nested mappings and lists whose tensors are copies in host memory: what training goes on changing."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_cpu(item) for item in value)
    return value


class _Hashing:
    """A file that is hashed as it is written."""

    def __init__(self, file: io.RawIOBase) -> None:
        self.file, self.sha256, self.num_bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        view = memoryview(data).cast("B")
        self.sha256.update(view)
        self.num_bytes += len(view)
        while view:  # a raw file may take less than all, and says so only by its result
            taken = self.file.write(view)
            if not taken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            view = view[taken:]
        return len(data)

    def flush(self) -> None:
        return


def _write(path: Path, content: object) -> dict[str, Any]:
    with path.open("wb", buffering=0) as file:
        hashing = _Hashing(file)
        try:
            torch.save(content, hashing)  # type: ignore[arg-type]
        except RuntimeError as error:
            # torch's zip writer turns what the file raised into its own error while it closes.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        os.fsync(file.fileno())
    return {"sha256": hashing.sha256.hexdigest(), "num_bytes": hashing.num_bytes}


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Path]:
    try:
        yield path
    except Exception as error:  # torch.load raises what its unpickler and zip reader happen to raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DamagedError(f"{path}: not readable as a checkpoint: {reason}") from None


def _draft(folder: Path, pointer: str, step: int) -> Path:
    draft = folder / f".{pointer}.{MINE}.tmp"
    try:
        _put(draft, (name_of(step) + "\n").encode())
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return draft


def _discard(checkpoint: Path) -> None:
    """Delete a checkpoint; one that is killed over it leaves no half of it under its name."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _put(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _set_aside(checkpoint: Path) -> None:
    target = checkpoint.with_name(f"damaged-{checkpoint.name}")
    shutil.rmtree(target, ignore_errors=True)
    checkpoint.rename(target)
