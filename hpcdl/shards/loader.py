"""Shards to batches of tensors, made ready by a thread while the network computes."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import dataclass

import torch

from hpcdl.shards.buffers import BufferPool
from hpcdl.shards.order import Indices, SampleOrder
from hpcdl.shards.reader import ShardReader

AHEAD = 2
"""Chunks made ready before they are asked for."""
CHUNK_BYTES = 4_000_000
"""Small batches are made several at a time, up to this size: handing one over costs more than filling it."""
CHUNK_BATCHES = 64


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
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.fields.items()}
        _hold_until_copied(self.fields)
        return Batch(moved, self.mask.to(device), self.draws.to(device))

    def parts(self, number: int) -> list[Batch]:
        """The batch cut into `number` equal parts, in order."""
        size = len(self) // number
        cuts = [slice(start, start + size) for start in range(0, len(self), size)]
        return [
            Batch({name: tensor[cut] for name, tensor in self.fields.items()}, self.mask[cut], self.draws[cut])
            for cut in cuts
        ]


_COPYING: deque[tuple[torch.cuda.Event, Mapping[str, torch.Tensor]]] = deque()


def _hold_until_copied(fields: Mapping[str, torch.Tensor]) -> None:
    """Keep tensors alive, and so their buffers from being filled anew, until the device has copied them."""
    copied = torch.cuda.Event()
    copied.record()
    _COPYING.append((copied, fields))
    while _COPYING and _COPYING[0][0].query():
        _COPYING.popleft()


class Loader:
    """One rank's batches of a split, epoch by epoch, from any batch on.

    A batch's tensors are its own for as long as anything refers to them or to a part of them.
    """

    def __init__(self, reader: ShardReader, order: SampleOrder, rank: int, size: int) -> None:
        self.reader, self.order, self.rank, self.size = reader, order, rank, size
        self._each = order.batch_size // size
        batch_bytes = max(1, self._each * reader.sample_bytes)
        self._chunk = max(1, min(CHUNK_BYTES // batch_bytes, CHUNK_BATCHES, order.num_batches))
        self._pool = BufferPool(lambda: reader.empty(self._chunk * self._each), torch.cuda.is_available())

    def batches(self, epoch: int, first: int = 0) -> Generator[Batch, None, None]:
        """The epoch's batches from number `first` on; ending early ends the thread that makes them."""
        ready: queue.Queue[list[Batch] | BaseException | None] = queue.Queue(AHEAD)
        stop = threading.Event()

        def put(item: list[Batch] | BaseException | None) -> bool:
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
                for number in range(first, self.order.num_batches, self._chunk):
                    last = min(number + self._chunk, self.order.num_batches)
                    if not put(self._make(places, number, last)):
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
                item.reverse()
                while item:
                    # Popped, so that the loader itself keeps no batch alive that its user has dropped.
                    yield item.pop()
        finally:
            stop.set()
            thread.join()

    def _make(self, places: tuple[Indices, Indices], first: int, last: int) -> list[Batch]:
        """Batches `first` to before `last`."""
        share = self.order.shares(places, first, last, self.rank, self.size)
        count = (last - first) * self._each
        buffers = {name: array[:count] for name, array in self._pool.take().items()}
        self.reader.gather(share.indices, buffers)
        tensors = {name: torch.from_numpy(array).split(self._each) for name, array in buffers.items()}
        masks = torch.from_numpy(share.mask).split(self._each)
        draws = torch.from_numpy(share.draws).split(self._each)
        return [
            Batch({name: parts[number] for name, parts in tensors.items()}, masks[number], draws[number])
            for number in range(last - first)
        ]
