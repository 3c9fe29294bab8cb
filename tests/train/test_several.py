"""What several ranks tell each other, and that they stop, fail and go on together: real mpirun, Horovod and gloo."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpcdl.train.communicator import Communicator, Single
from tests.datasets import write_blobs
from tests.train.trainings import numbers

ROOT = Path(__file__).parents[2]


def launch(folder: Path, ranks: int, comm: str) -> list[dict[str, Any]]:
    """What each rank saw."""
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        pytest.skip("needs mpirun")
    write_blobs(folder / "data", {"train": 22, "val": 14})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    done = subprocess.run(
        [
            mpirun, "-n", str(ranks), "--oversubscribe", "--bind-to", "none",
            sys.executable, "-m", "tests.train.several", folder, comm,
        ],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.slow
@pytest.mark.parametrize(("comm", "ranks"), [("horovod", 2), ("horovod", 4), ("torch", 4)])
def test_several_ranks(tmp_path: Path, comm: str, ranks: int) -> None:
    seen = launch(tmp_path, ranks, comm)
    for rank, one in enumerate(seen):
        assert [one["rank"], one["size"]] == [rank, ranks]
        assert one["gathered"] == [[(who + place) % 256 for place in range(1000 * who)] for who in range(ranks)]
        assert one["means"] == [[[(ranks - 1) / 2] * 2] * 3, rank, [rank > 0]]
        assert one["untouched"]
        assert one["large"]
        assert one["double"] == 2.0**60 + ranks - 1 - (ranks - 1)  # as doubles: nothing is lost but the units
        # Bit by bit the same, on every rank, whether or not it was stopped on the way.
        assert one["done"] == [[False, 1], [False, 6], [False, 9], [True, 12]]
        assert one["whole"] == one["parts"] == seen[0]["whole"]
        assert one["own"]["same buffers"]
        assert one["own"]["same generators"]
        # One rank is at fault, all say so.
        assert one["broken"].startswith("step 3: loss is nan on rank 1 (")
        assert one["skipped"] == [1, seen[0]["skipped"][1]]
        assert one["unsaved"][1] == seen[0]["unsaved"][1] <= 10
    # A second one, after the validation of step 6, may fail before the ranks hear of the first.
    told = rf"checkpoint of step [456] could not be written to {tmp_path}/unsaved/checkpoints: No space left"
    assert re.match(told, seen[0]["unsaved"][0])
    assert seen[0]["own"]["buffers"] != seen[1]["own"]["buffers"]
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


class Recorded(Single):
    """One of two processes, whose other one only says the same."""

    size = 2

    def sum_async(self, tensor: Any, name: str) -> Any:
        return lambda: 2 * tensor


@pytest.mark.parametrize("comm", [Single(), Recorded()])
def test_a_mean_of_nothing_that_can_be_averaged(comm: Communicator) -> None:
    import torch

    tensors = [torch.tensor(3), torch.tensor([True])]
    assert all(a is b for a, b in zip(comm.mean(tensors, "x"), tensors, strict=True))
    assert comm.mean([], "x") == []
