"""The order of samples: a pure function of (data set, seed, epoch), the same for any number of ranks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RankBatch:
    """One rank's share of a global batch.

    Attributes:
        indices: sample numbers in the split, always batch_size / ranks of them; a short last batch is filled up by repeats.
        mask: False for the repeats, which must count nowhere.
        draws: a random number of each sample in [0, 2**63), the same whichever rank draws it: augmentation starts from it.
    """

    indices: Indices
    mask: npt.NDArray[np.bool_]
    draws: Indices


@dataclass(frozen=True)
class SampleOrder:
    """Batches of one split.

    Attributes:
        digest: of the data set.
        batch_size: of all ranks together.
        shuffled: False for validation: sample order.
    """

    digest: str
    num_samples: int
    batch_size: int
    seed: int
    shuffled: bool = True

    @property
    def num_batches(self) -> int:
        """Batches of an epoch, a short last one included."""
        return -(-self.num_samples // self.batch_size)

    def epoch(self, epoch: int) -> tuple[Indices, Indices]:
        """The epoch's permutation and each position's draw, both of length num_samples."""
        generator = self._generator(epoch)
        order = generator.permutation(self.num_samples) if self.shuffled else np.arange(self.num_samples)
        return order.astype(np.int64), generator.integers(0, 2**63, self.num_samples, dtype=np.int64)

    def share(self, epoch: tuple[Indices, Indices], batch: int, rank: int, size: int) -> RankBatch:
        """The part of global batch `batch` that belongs to one of `size` ranks; batch_size must divide by `size`."""
        return self.shares(epoch, batch, batch + 1, rank, size)

    def shares(self, epoch: tuple[Indices, Indices], first: int, last: int, rank: int, size: int) -> RankBatch:
        """That part of the batches from `first` to before `last`, one after the other."""
        order, draws = epoch
        each = self.batch_size // size
        starts = np.arange(first, last) * self.batch_size + rank * each
        positions = (starts[:, None] + np.arange(each)).ravel()
        mask = positions < self.num_samples
        positions %= self.num_samples
        return RankBatch(order[positions], mask, draws[positions])

    def _generator(self, epoch: int) -> np.random.Generator:
        key = hashlib.sha256(f"{self.digest}:{self.seed}:{epoch}".encode()).digest()
        # Philox is defined by its paper and numpy keeps its stream; its key takes 128 bits.
        return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
