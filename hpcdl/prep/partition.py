"""Which split each sample goes to, for inputs that are a list of samples: drawn by group, or in the order of the input.

Land cover has splits of its own (splits.py), as its samples lie beside each other on a map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from hpcdl.errors import UsageError
from hpcdl.prep.plan import SPLITS

Indices = npt.NDArray[np.int64]


def by_group(groups: Sequence[str], val_fraction: float, test_fraction: float, seed: int) -> dict[str, Indices]:
    """Sample numbers of each split, ascending; samples of one group (a patient, a scene) are never parted.

    Groups are ordered by a hash of seed and name and dealt out until a split has its share of the samples: test first,
    then val. So the draw does not depend on the order of the input.

    Args:
        groups: each sample's group; give every sample its own name to draw samples one by one.

    Raises:
        UsageError: the fractions are no shares, or there are too few groups to give each split one.
    """
    check_fractions(val_fraction, test_fraction)
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    order = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    owner: dict[str, str] = {}
    taken = 0
    for split, fraction in (("test", test_fraction), ("val", val_fraction)):
        wanted, got = fraction * len(groups), 0
        # A group goes in while at least half of it is wanted; one is always taken where a share is asked for.
        while taken < len(order) and fraction > 0 and (got == 0 or got + sizes[order[taken]] / 2 <= wanted):
            owner[order[taken]] = split
            got += sizes[order[taken]]
            taken += 1
    names = np.array([owner.get(group, "train") for group in groups])
    return _checked({split: np.flatnonzero(names == split) for split in SPLITS}, val_fraction, test_fraction)


def in_order(count: int, val_fraction: float, test_fraction: float) -> dict[str, Indices]:
    """Sample numbers of each split: the first ones train, then come val and test; for time, and for given orders.

    Raises:
        UsageError: the fractions are no shares, or there are too few samples.
    """
    check_fractions(val_fraction, test_fraction)
    num_val, num_test = round(count * val_fraction), round(count * test_fraction)
    parts = np.split(np.arange(count), [count - num_val - num_test, count - num_test])
    return _checked(dict(zip(("train", "val", "test"), parts, strict=True)), val_fraction, test_fraction)


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Refuse fractions that leave nothing to train.

    Raises:
        UsageError: a fraction is not from 0 to 1, or both together reach 1.
    """
    for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= value <= 1:
            raise UsageError(f"{name} is {value}; it is a share from 0 to 1")
    if val_fraction + test_fraction >= 1:
        raise UsageError(f"val_fraction {val_fraction} and test_fraction {test_fraction} leave nothing to train")


def _checked(splits: Mapping[str, Indices], val_fraction: float, test_fraction: float) -> dict[str, Indices]:
    """The splits that hold samples, in their usual order."""
    wanted = {"train": 1.0, "val": val_fraction, "test": test_fraction}
    for split in SPLITS:
        if wanted[split] > 0 and len(splits[split]) == 0:
            raise UsageError(
                f"the {split} split gets no samples: {sum(map(len, splits.values()))} samples are too few for these "
                "fractions (samples of one group stay together); give other fractions, or 0 to leave a split out"
            )
    return {split: splits[split] for split in SPLITS if len(splits[split])}
