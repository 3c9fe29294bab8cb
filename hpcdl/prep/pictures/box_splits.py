"""Which split each annotated picture goes to: as lists of names say, drawn, or in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcdl.errors import UsageError
from hpcdl.prep.language.lines import text_file
from hpcdl.prep.partition import Indices, by_group, in_order
from hpcdl.prep.pictures.annotations import Annotated
from hpcdl.prep.pictures.box_pictures import Record, name_keys
from hpcdl.prep.pictures.files import matched
from hpcdl.prep.pictures.tasks import joined
from hpcdl.prep.plan import SPLITS


@dataclass(frozen=True)
class Dealing:
    """How pictures are dealt: by `lists` (split to file) if there are any, else "random" or "order"."""

    lists: Mapping[str, str]
    how: str
    group: str | None
    val_fraction: float
    test_fraction: float
    seed: int


def deal(
    dealing: Dealing, pictures: Sequence[Annotated], records: Sequence[Record], digests: Sequence[str]
) -> tuple[dict[str, Indices], int]:
    """The places in `records` of each split, and how many are in no list.

    Args:
        dealing: how.
        pictures: all that are annotated; the numbers of records count them.
        records: those of them that are samples.
        digests: of the records' pictures; copies of one picture are drawn together.

    Raises:
        UsageError: a list is not readable, or fractions that are no shares or leave a split empty.
    """
    if dealing.lists:
        return _by_lists(dealing.lists, pictures, records)
    if dealing.how == "order":
        return in_order(len(records), dealing.val_fraction, dealing.test_fraction), 0
    groups = list(digests)
    if dealing.group is not None:
        named = [matched(dealing.group, record.path.stem, record.path, "--group") for record in records]
        groups = joined([(f"group {name}", digest) for name, digest in zip(named, digests, strict=True)])
    return by_group(groups, dealing.val_fraction, dealing.test_fraction, dealing.seed), 0


def _by_lists(
    lists: Mapping[str, str], pictures: Sequence[Annotated], records: Sequence[Record]
) -> tuple[dict[str, Indices], int]:
    """The places in `records` of each split's pictures, and how many are in no list.

    Args:
        lists: split to a file with a picture's name a line, with or without folder and ending. Without one for train, all
            other pictures train.
        pictures: all that are annotated.
        records: those of them that are samples.

    Raises:
        UsageError: a list is not readable, or names what is not annotated, or what another list has.
    """
    known: dict[str, set[int]] = {}
    for number, picture in enumerate(pictures):
        for key in name_keys(picture.names[0]):
            known.setdefault(key, set()).add(number)
    owner: dict[int, str] = {}
    for split, name in lists.items():
        for line in text_file(Path(name).expanduser(), "utf-8").lines():
            text = line.text.strip()
            if not text:
                continue
            numbers: set[int] = next((known[key] for key in name_keys(text) if key in known), set())
            if len(numbers) != 1:
                what = "is not annotated" if not numbers else f"fits {len(numbers)} annotated pictures"
                raise UsageError(f"{name}:{line.number}: {text!r} {what}; a list has one picture's name a line")
            (number,) = numbers
            if owner.setdefault(number, split) != split:
                raise UsageError(
                    f"{name}:{line.number}: {text!r} is in the list of {owner[number]}, too; keep one of both"
                )
    rest = "train" if "train" not in lists else None
    found: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        own = owner.get(record.number, rest)
        if own is not None:
            found.setdefault(own, []).append(place)
    for split in lists:
        if split not in found:
            raise UsageError(f"{lists[split]}: none of its pictures is left for {split}; see the warnings")
    splits = {split: np.array(found[split], np.int64) for split in SPLITS if split in found}
    return splits, len(records) - sum(map(len, found.values()))
