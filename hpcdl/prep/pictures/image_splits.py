"""Which labelled pictures are taken and which split each goes to: as the input says, drawn, or in order."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from hpcdl.errors import UsageError
from hpcdl.prep.partition import Indices, by_group, check_fractions, in_order
from hpcdl.prep.pictures.image_classes import Classes
from hpcdl.prep.pictures.image_lists import Sample
from hpcdl.prep.plan import SPLITS


def deal(
    samples: Sequence[Sample],
    digests: Sequence[str],
    how: str | None,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> dict[str, Indices]:
    """Sample numbers of each split. Copies of one picture are drawn together; given splits and order take them as they lie.

    Raises:
        UsageError: the input says no splits, or not for all samples, or fractions leave a split empty.
    """
    given = [sample.split for sample in samples]
    if how == "random" or (how is None and not any(given)):
        return by_group(digests, val_fraction, test_fraction, seed)
    if how == "order":
        return in_order(len(samples), val_fraction, test_fraction)
    if not all(given):
        path = samples[given.index(None)].path
        raise UsageError(
            f"{path}: the input does not say which split this belongs to; name files or folders train, val and test, give "
            "a split column, or use --split random"
        )
    splits = {split: np.flatnonzero(np.array(given) == split) for split in SPLITS}
    if not len(splits["train"]):
        raise UsageError("--images: the given splits hold no train samples; use --split random to draw splits")
    if not len(splits["val"]) and val_fraction > 0:
        check_fractions(val_fraction, 0)
        train = splits["train"]
        drawn = by_group([digests[n] for n in train.tolist()], val_fraction, 0, seed)
        splits["train"], splits["val"] = train[drawn["train"]], train[drawn["val"]]
    return {split: splits[split] for split in SPLITS if len(splits[split])}


def limited(
    samples: Sequence[Sample],
    labels: Sequence[int],
    digests: Sequence[str],
    limit: int | None,
    how: str | None,
    seed: int,
) -> list[int]:
    """Numbers of the samples to take, ascending: at most `limit` of each class and given split.

    They are drawn by a hash of seed and content; with "order" the first ones are taken.
    """
    if limit is None:
        return list(range(len(samples)))
    order = list(range(len(samples)))
    if how != "order":
        order = sorted(order, key=lambda n: hashlib.sha256(f"{seed}:{digests[n]}".encode()).digest())
    taken: dict[tuple[int, str | None], list[int]] = {}
    for number in order:
        split = samples[number].split if how in (None, "given") else None
        members = taken.setdefault((labels[number], split), [])
        if len(members) < limit:
            members.append(number)
    return sorted(number for members in taken.values() for number in members)


def notes_on(
    splits: Mapping[str, Indices], labels: Sequence[int], digests: Sequence[str], classes: Classes
) -> tuple[str, ...]:
    """What the user should know of the samples dealt: copies, and classes that are never trained."""
    notes = []
    split_of = {n: split for split, numbers in splits.items() for n in numbers.tolist()}
    places: dict[str, set[tuple[str, int]]] = {}
    for number, digest in enumerate(digests):
        places.setdefault(digest, set()).add((split_of[number], labels[number]))
    repeated = sum(number for number in Counter(digests).values() if number > 1)
    if repeated:
        across = sum(len({split for split, _ in place}) > 1 for place in places.values())
        unsure = sum(len({label for _, label in place}) > 1 for place in places.values())
        notes.append(
            f"note: {repeated} samples have the same picture as another one; {across} such pictures lie in more than one "
            f"split, {unsure} have more than one label"
        )
    trained = {labels[n] for n in splits["train"].tolist()}
    missing = [classes.names[index] for index in sorted({*labels} - trained)]
    if missing:
        notes.append(f"note: no train sample has these classes of other splits: {', '.join(missing[:10])}")
    return tuple(notes)
