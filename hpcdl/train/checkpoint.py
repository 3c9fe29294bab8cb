"""Checkpoints: a folder a step, made under a temporary name and committed by renaming; LAST names the newest.

checkpoints/
  step-00001200/state.pt       networks, averaged networks, optimizers, position (written by rank 0)
  step-00001200/rank-00000.pt  random states of one rank
  LAST                         the name of the newest folder
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from hpcdl.errors import FailedError
from hpcdl.train.communicator import Communicator

POINTER = "LAST"


def save(folder: Path, step: int, state: Mapping[str, Any], comm: Communicator, keep: int) -> Path:
    """Write a checkpoint on all ranks together and commit it; then only the newest `keep` are left.

    Args:
        state: what state.pt holds; read on rank 0 only.
    """
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    if comm.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    comm.barrier()
    _write(temporary / f"rank-{comm.rank:05d}.pt", _random_state())
    if comm.rank == 0:
        _write(temporary / "state.pt", dict(state))
    comm.barrier()
    if comm.rank == 0:
        shutil.rmtree(final, ignore_errors=True)
        _sync(temporary)
        temporary.rename(final)
        pointer = folder / f".{POINTER}.tmp"
        pointer.write_text(final.name + "\n", encoding="utf-8")
        pointer.replace(folder / POINTER)
        _sync(folder)
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    comm.barrier()
    return final


def newest(folder: Path) -> Path | None:
    """The checkpoint that LAST names, else the newest complete folder, else None."""
    try:
        named = folder / (folder / POINTER).read_text(encoding="utf-8").strip()
    except OSError:
        named = folder
    if named != folder and (named / "state.pt").is_file():
        return named
    found = [path for path in sorted(folder.glob("step-*")) if (path / "state.pt").is_file()]
    return found[-1] if found else None


def load(checkpoint: Path) -> dict[str, Any]:
    """state.pt of a checkpoint, on the CPU; nothing in it can run code.

    Raises:
        FailedError: it is damaged.
    """
    try:
        state: dict[str, Any] = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what its unpickler and zip reader happen to raise
        raise FailedError(f"{checkpoint / 'state.pt'}: not readable as a checkpoint: {error}") from None
    return state


def restore_random_state(checkpoint: Path, rank: int) -> bool:
    """Set this rank's random states to those of the checkpoint; False when it was made without this rank."""
    path = checkpoint / f"rank-{rank:05d}.pt"
    if not path.is_file():
        return False
    state = torch.load(path, map_location="cpu", weights_only=True)
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
    return True


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = cast("tuple[Any, ...]", np.random.get_state(legacy=True))
    version, values, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, keys.tolist(), *rest],
        "python": [version, list(values), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _write(path: Path, content: object) -> None:
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
