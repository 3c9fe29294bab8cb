"""Memory for batches, used again once nobody holds it: fresh memory costs as much as copying into it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
Buffers = Mapping[str, Array]


class BufferPool:
    """Hands out sets of arrays; a set comes round again when no tensor made from it, nor any part of one, is left.

    Args:
        make: a new set.
        pinned: in page-locked memory, from which a GPU copies while it computes.
    """

    def __init__(self, make: Callable[[], dict[str, Array]], pinned: bool = False) -> None:
        self._make, self._pinned = make, pinned
        self._sets: list[dict[str, Array]] = []

    def take(self) -> Buffers:
        """A set that nobody holds."""
        for buffers in self._sets:
            if all(_is_free(buffers, name) for name in buffers):
                return buffers
        made = self._make()
        if self._pinned:
            made = {name: _pinned(array) for name, array in made.items()}
        self._sets.append(made)
        return made


def _is_free(buffers: dict[str, Array], name: str) -> bool:
    # The set's own reference and getrefcount's argument; a tensor over the array holds one more for as long as it or a
    # view of it lives.
    return sys.getrefcount(buffers[name]) <= 2


def _pinned(array: Array) -> Array:
    kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
    locked: Array = torch.empty(array.shape, dtype=kind, pin_memory=True).numpy()
    return locked
