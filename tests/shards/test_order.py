from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.shards.order import SampleOrder

ORDER = [6, 2, 3, 5, 1, 7, 4, 0]
DRAW = 5039033754902082347


@given(
    num_samples=st.integers(1, 200),
    each=st.integers(1, 6),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 5),
)
def test_any_number_of_ranks_sees_the_same_batches(num_samples: int, each: int, seed: int, epoch: int) -> None:
    order = SampleOrder("digest", num_samples, batch_size=12 * each, seed=seed)
    places = order.epoch(epoch)
    seen = []
    for batch in range(order.num_batches):
        whole = order.share(places, batch, 0, 1)
        for size in (2, 3, 4):
            shares = [order.share(places, batch, rank, size) for rank in range(size)]
            assert {len(share.indices) for share in shares} == {order.batch_size // size}
            assert np.array_equal(np.concatenate([share.indices for share in shares]), whole.indices)
            assert np.array_equal(np.concatenate([share.mask for share in shares]), whole.mask)
            assert np.array_equal(np.concatenate([share.draws for share in shares]), whole.draws)
        seen += whole.indices[whole.mask].tolist()
    assert sorted(seen) == list(range(num_samples))


def test_the_order_is_a_function_of_data_set_seed_and_epoch() -> None:
    base = SampleOrder("digest", 100, 10, seed=1)
    assert np.array_equal(base.epoch(3)[0], SampleOrder("digest", 100, 50, seed=1).epoch(3)[0])
    for other in (SampleOrder("other", 100, 10, 1), SampleOrder("digest", 100, 10, 2)):
        assert not np.array_equal(base.epoch(3)[0], other.epoch(3)[0])
    assert not np.array_equal(base.epoch(3)[0], base.epoch(4)[0])


def test_the_order_never_changes_between_releases() -> None:
    # A run must be able to go on under a newer hpcdl: these numbers are part of the format.
    order, draws = SampleOrder("digest", 8, 4, seed=0).epoch(0)
    assert order.tolist() == ORDER
    assert draws[0] == DRAW


def test_validation_keeps_sample_order() -> None:
    assert SampleOrder("digest", 5, 2, 0, shuffled=False).epoch(7)[0].tolist() == [0, 1, 2, 3, 4]
