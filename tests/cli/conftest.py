"""A tiny data set and a tiny training, for the commands to work on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.datasets import write_blobs

TINY = ["--set", "width=2", "--set", "depth=1", "--set", "batch_size=4", "--set", "log_every=1", "--set", "val_every=0"]


@pytest.fixture
def data(workdir: Path) -> Path:
    """A data set of 8 training chips in data/blobs."""
    write_blobs(workdir / "data" / "blobs", {"train": 8, "val": 4, "test": 4})
    return Path("data/blobs")
