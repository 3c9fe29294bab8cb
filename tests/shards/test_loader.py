from __future__ import annotations

import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(each=st.integers(1, 5), ranks=st.integers(1, 4), epoch=st.integers(0, 3), data=st.data())
def test_ranks_share_an_epoch_out_whatever_their_number_and_wherever_they_start(
    manifest: Manifest, each: int, ranks: int, epoch: int, data: st.DataObject
) -> None:
    """No overlap between ranks, all of it together, equal batches, the same from any batch on; two threads or one."""
    batch_size = each * ranks
    one = ShardReader(manifest, "train", ("image", "label"))
    order = SampleOrder(manifest.digest, len(one), batch_size, seed=1)
    first = data.draw(st.integers(0, order.num_batches - 1))
    whole = [(batch["label"].clone(), batch.mask) for batch in Loader(one, order, 0, 1).batches(epoch, first)]
    shares = []
    for rank in range(ranks):
        reader = ShardReader(manifest, "train", ("image", "label"), threads=1 + rank % 2)
        shares.append([(b["label"].clone(), b.mask) for b in Loader(reader, order, rank, ranks).batches(epoch, first)])
    assert {len(share) for share in shares} == {len(whole)} == {order.num_batches - first}
    for number, (labels, mask) in enumerate(whole):
        parts = [share[number] for share in shares]
        assert {len(part) for _, part in parts} == {batch_size // ranks}
        assert torch.equal(torch.cat([labels for labels, _ in parts]), labels)
        assert torch.equal(torch.cat([mask for _, mask in parts]), mask)
    if first == 0:
        assert sum(int(mask.sum()) for _, mask in whole) == len(one)


def test_several_threads_copy_the_same_samples(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcdl.shards.reader._WORTH_THREADS_BYTES", 1)
    indices = np.array([20, 0, 7, 8, 8, 15, 3])
    for large in (1, 10**9):
        monkeypatch.setattr("hpcdl.shards.reader._LARGE_BYTES", large)
        readers = [ShardReader(manifest, "train", ("image", "label"), threads=threads) for threads in (1, 3)]
        one, three = (reader.gather(indices) for reader in readers)
        assert all(np.array_equal(one[name], three[name]) for name in ("image", "label"))


def test_batches_that_are_kept_are_not_overwritten(manifest: Manifest) -> None:
    kept = [batch["image"][1:] for batch in loader(manifest, batch_size=2).batches(0)]
    again = [batch["image"][1:].clone() for batch in loader(manifest, batch_size=2).batches(0)]
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_a_shard_that_is_not_what_the_manifest_says_is_named_with_its_samples(manifest: Manifest) -> None:
    other = write_blobs(manifest.folder.parent / "other", {"train": 8}, chip_px=8)
    (manifest.folder / "train-00001.h5").write_bytes((other.folder / "train-00000.h5").read_bytes())
    with pytest.raises(FailedError, match=r"train-00001\.h5 \(samples 8–15 of its split\): field 'image' holds"):
        list(loader(manifest).batches(0))
