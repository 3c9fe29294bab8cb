from __future__ import annotations

import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpcdl.errors import FailedError
from hpcdl.shards.loader import Batch, Loader
from hpcdl.shards.manifest import Manifest
from hpcdl.shards.order import SampleOrder
from hpcdl.shards.reader import ShardReader
from tests.datasets import write_blobs


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_blobs(tmp_path / "data", {"train": 21, "val": 3}, per_shard=8)


def everything(manifest: Manifest, name: str) -> np.ndarray:
    arrays = []
    for shard in manifest.splits["train"]:
        with h5py.File(manifest.folder / shard.file) as file:
            arrays.append(file[name][...])
    return np.concatenate(arrays)


def loader(manifest: Manifest, rank: int = 0, size: int = 1, batch_size: int = 4) -> Loader:
    reader = ShardReader(manifest, "train", ("image", "label"))
    return Loader(reader, SampleOrder(manifest.digest, len(reader), batch_size, seed=0), rank, size)


def test_samples_come_as_they_are_in_the_shards(manifest: Manifest) -> None:
    reader = ShardReader(manifest, "train", ("image", "label"))
    indices = np.array([20, 0, 7, 8, 8, 15])
    got = reader.gather(indices)
    for name in ("image", "label"):
        expected = everything(manifest, name)[indices]
        assert got[name].dtype == expected.dtype
        assert np.array_equal(got[name], expected)


def test_an_epoch_holds_every_sample_once(manifest: Manifest) -> None:
    images = torch.cat([batch["image"][batch.mask] for batch in loader(manifest).batches(0)]).numpy()
    assert len(images) == 21
    expected = everything(manifest, "image")
    key = [image.tobytes() for image in expected]
    assert sorted(image.tobytes() for image in images) == sorted(key)


def test_going_on_in_the_middle_gives_the_same_batches(manifest: Manifest) -> None:
    whole = list(loader(manifest).batches(1))
    rest = list(loader(manifest).batches(1, first=4))
    assert len(whole) - 4 == len(rest)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(whole[4:], rest, strict=True))


def test_leaving_early_ends_the_thread(manifest: Manifest) -> None:
    batches = loader(manifest).batches(0)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "hpcdl-loader"]


def test_a_damaged_shard_is_named(manifest: Manifest) -> None:
    (manifest.folder / "train-00001.h5").write_bytes(b"not HDF5")
    with pytest.raises(FailedError, match=r"train-00001\.h5 \(samples 8–15 of its split\): not readable as a shard"):
        list(loader(manifest).batches(0))


def test_parts_are_the_batch_in_order(manifest: Manifest) -> None:
    batch = next(loader(manifest).batches(0))
    parts: list[Batch] = batch.parts(2)
    assert torch.equal(torch.cat([part["label"] for part in parts]), batch["label"])
    assert torch.equal(torch.cat([part.draws for part in parts]), batch.draws)
