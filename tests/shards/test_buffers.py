from __future__ import annotations

import numpy as np
import torch

from hpcdl.shards.buffers import BufferPool


def test_a_set_comes_round_when_no_part_of_it_is_held() -> None:
    made: list[int] = []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return {"image": np.zeros((8, 3)), "label": np.zeros(8)}

    pool = BufferPool(make)
    first = {name: torch.from_numpy(array) for name, array in pool.take().items()}
    part = first["image"].split(4)[1][2:]
    address = first["image"].data_ptr()
    second = {name: torch.from_numpy(array) for name, array in pool.take().items()}
    assert second["image"].data_ptr() != address
    del first
    third = {name: torch.from_numpy(array) for name, array in pool.take().items()}
    assert third["image"].data_ptr() not in (address, second["image"].data_ptr())  # `part` still holds the first one
    assert len(made) == 3
    part = part.clone()
    assert torch.from_numpy(pool.take()["image"]).data_ptr() == address
    assert len(made) == 3
