"""Shards to batches of tensors: files are mapped, samples gathered, and the next batches made ready while the network computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch

from hpcdl.errors import FailedError
from hpcdl.shards.manifest import Manifest
from hpcdl.shards.order import RankBatch, SampleOrder

AHEAD = 2
"""Batches made ready before they are asked for: one to hand over, one in the making."""


@dataclass(frozen=True)
class Batch:
    """One rank's share of a batch.

    Attributes:
        fields: tensors by name, first axis the sample, in the shards' dtype.
        mask: (B,) bool, False for repeats that fill up a short last batch.
        draws: (B,) int64, a random number of each sample, the same for any number of ranks.
    """

    fields: Mapping[str, torch.Tensor]
    mask: torch.Tensor
    draws: torch.Tensor

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.fields[name]

    def __len__(self) -> int:
        return len(self.mask)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; from pinned memory the copy overlaps with what the device does."""
        if device.type == "cpu":
            return self
        moved = {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in self.fields.items()}
        return Batch(moved, self.mask.to(device), self.draws.to(device))

    def parts(self, number: int) -> list[Batch]:
        """The batch cut into `number` equal parts, in order."""
        size = len(self) // number
        cuts = [slice(start, start + size) for start in range(0, len(self), size)]
        return [
            Batch({name: tensor[cut] for name, tensor in self.fields.items()}, self.mask[cut], self.draws[cut])
            for cut in cuts
        ]


class ShardReader:
    """All samples of a split as one sequence, read through memory maps; opened at first use, once a process."""

    def __init__(self, manifest: Manifest, split: str, names: tuple[str, ...]) -> None:
        self.manifest, self.names = manifest, names
        self.shards = [shard for shard in manifest.splits.get(split, ()) if shard.num_samples]
        self.starts = np.cumsum([0] + [shard.num_samples for shard in self.shards])
        self._maps: list[dict[str, npt.NDArray[Any]] | None] = [None] * len(self.shards)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def gather(self, indices: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        """Samples by number, in the order asked for: name to an array of shape (len(indices), …)."""
        owner = np.searchsorted(self.starts, indices, side="right") - 1
        first = self._map(int(owner[0]))
        arrays = {name: np.empty((len(indices), *first[name].shape[1:]), first[name].dtype) for name in self.names}
        for number in np.unique(owner):
            (places,) = np.nonzero(owner == number)
            rows = indices[places] - self.starts[number]
            for name, mapped in self._map(int(number)).items():
                arrays[name][places] = mapped[rows]
        return arrays

    def _map(self, number: int) -> dict[str, npt.NDArray[Any]]:
        mapped = self._maps[number]
        if mapped is None:
            path = self.manifest.folder / self.shards[number].file
            try:
                with h5py.File(path, "r", locking=False) as file:
                    mapped = {name: _mapped(file[name]) for name in self.names}
            except (OSError, KeyError, ValueError) as error:
                raise FailedError(f"{path}: not readable as a shard: {error}") from None
            self._maps[number] = mapped
        return mapped


class Loader:
    """One rank's batches of a split, epoch by epoch, from any batch on."""

    def __init__(self, reader: ShardReader, order: SampleOrder, rank: int, size: int) -> None:
        self.reader, self.order, self.rank, self.size = reader, order, rank, size

    def batches(self, epoch: int, first: int = 0) -> Generator[Batch, None, None]:
        """The epoch's batches from number `first` on, made ready by a thread; ending early ends the thread."""
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(AHEAD)
        stop = threading.Event()

        def put(item: Batch | BaseException | None) -> bool:
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                except queue.Full:
                    continue
                return True
            return False

        def work() -> None:
            try:
                places = self.order.epoch(epoch)
                for number in range(first, self.order.num_batches):
                    if not put(self._make(self.order.share(places, number, self.rank, self.size))):
                        return
                put(None)
            except BaseException as error:  # handed over: the reader of the queue raises it
                put(error)

        thread = threading.Thread(target=work, name="hpcdl-loader", daemon=True)
        thread.start()
        try:
            while True:
                item = ready.get()
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def _make(self, share: RankBatch) -> Batch:
        arrays = self.reader.gather(share.indices)
        fields = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return Batch(fields, torch.from_numpy(share.mask), torch.from_numpy(share.draws))


def _mapped(dataset: h5py.Dataset) -> npt.NDArray[Any]:
    """A contiguous HDF5 data set as a read-only memory map; any other one as an array in memory."""
    offset = dataset.id.get_offset()
    if offset is None or dataset.chunks is not None or dataset.compression is not None:
        return np.asarray(dataset[...])
    return np.memmap(dataset.file.filename, mode="r", shape=dataset.shape, offset=offset, dtype=dataset.dtype)
