"""`mpirun … python -m tests.train.several FOLDER COMM`: one rank of several; writes what it saw to rank-<rank>.json."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from hpcdl.ranks import own_size
from hpcdl.shards.manifest import Manifest, load_manifest
from hpcdl.train.communicator import Communicator, open_communicator
from hpcdl.train.guards import AgreedError
from tests.train.trainings import digest, start

VALUES: dict[str, Any] = {
    "epochs": 4, "accumulate": 2, "ema": 0.9, "dropout": 0.3, "noise": True, "log_every": 2, "val_every": 2,
}  # fmt: skip


def main(folder: Path, name: str) -> None:
    """Every check in turn; all ranks do the same."""
    comm = open_communicator(name, own_size())
    seen = {"rank": comm.rank, "size": comm.size, **talk(comm), **train(comm, folder, load_manifest(folder / "data"))}
    (folder / f"rank-{comm.rank}.json").write_text(json.dumps(seen))


def talk(comm: Communicator) -> dict[str, Any]:
    """What the ranks tell each other."""
    mine = bytes((comm.rank + place) % 256 for place in range(1000 * comm.rank))  # rank 0 has nothing to say
    tensors = [
        torch.full((3, 2), float(comm.rank)),
        torch.tensor(comm.rank),
        torch.tensor([comm.rank], dtype=torch.bool),
    ]
    before = [tensor.clone() for tensor in tensors]
    means = comm.mean(tensors, "test")
    large = torch.rand(10_001, generator=torch.Generator().manual_seed(comm.rank))
    return {
        "gathered": [list(data) for data in comm.gather(mine)],
        "means": [mean.tolist() for mean in means],
        "untouched": all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True)),
        "large": comm.mean([large], "large")[0].tolist() == comm.mean([large], "large")[0].tolist(),
        "double": comm.sum(torch.tensor([2.0**60 if comm.rank == 0 else 1.0], dtype=torch.float64), "double").item(),
    }


def train(comm: Communicator, folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Trainings: whole and in parts, one that fails on one rank, one whose checkpoints cannot be written."""
    whole = start(folder / "whole", manifest, comm=comm, **VALUES)
    whole.train()
    done = []
    for stop in (1, 6, 9):  # the sixth step ends an epoch that is validated
        part = start(folder / "parts", manifest, comm=comm, **VALUES)
        if comm.rank == comm.size - 1:  # one rank is asked, all stop
            part.stop_at = stop
        done.append([part.train(), part.state.at.step])
    last = start(folder / "parts", manifest, comm=comm, **VALUES)
    done.append([last.train(), last.state.at.step])
    buffers = [value.tolist() for value in whole.state.buffers().values()]
    same = all(
        torch.equal(a, b) for a, b in zip(whole.state.buffers().values(), last.state.buffers().values(), strict=True)
    )
    generators = torch.equal(whole.state.own()["random"]["torch"], last.state.own()["random"]["torch"])

    broken = start(folder / "broken", manifest, comm=comm, **VALUES, bad_calls="5", bad_rank=1)
    skipped = start(folder / "skipped", manifest, comm=comm, **VALUES, bad_calls="5", bad_rank=1, on_nan="skip")
    skipped.train()

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    unsaved = start(folder / "unsaved", manifest, comm=comm, **VALUES, permit=full, checkpoint__steps=4)
    return {
        "done": done,
        "whole": digest(whole),
        "parts": digest(last),
        "own": {"buffers": buffers, "same buffers": same, "same generators": generators},
        "broken": error(broken),
        "skipped": [skipped.state.num_skipped, digest(skipped)],
        "unsaved": [error(unsaved), unsaved.state.at.step],
    }


def error(trainer: Any) -> str:
    """How a training fails."""
    try:
        trainer.train()
    except AgreedError as failed:
        return str(failed)
    return ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
