"""Shards of samples that come from many files: tasks that carry their own files, and what decides the bytes of each."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcdl.errors import UsageError
from hpcdl.prep.plan import ShardTask, shard_tasks

Indices = npt.NDArray[np.int64]


def tasks_with_files(
    splits: Mapping[str, Indices],
    items: Sequence[Any],
    contents: Sequence[str],
    places: Sequence[str],
    sample_bytes: int,
    shard_mb: int,
) -> tuple[tuple[ShardTask, ...], list[list[str]]]:
    """Tasks whose `items` are those of their samples, and [name, digest of the samples' contents] of each task.

    Args:
        splits: sample numbers of each split.
        items: of each sample, what a worker needs to make it.
        contents: of each sample, what its bytes come from, whatever its files are called.
        places: of each sample, its place in the input, for messages.
        sample_bytes: what one sample takes in a shard.
        shard_mb: size of a shard, at most.
    """

    def where(_: str, numbers: npt.NDArray[Any]) -> str:
        first, last = places[int(numbers[0])], places[int(numbers[-1])]
        return first if first == last else f"{first} to {last}"

    tasks: list[ShardTask] = []
    decisive: list[list[str]] = []
    for task in shard_tasks(splits, sample_bytes, shard_mb, where):
        numbers = task.items.tolist()
        digest = hashlib.sha256("\n".join(contents[number] for number in numbers).encode())
        decisive.append([task.name, digest.hexdigest()])
        tasks.append(dataclasses.replace(task, items=[items[number] for number in numbers]))
    return tuple(tasks), decisive


def joined(tags: Sequence[Sequence[str]]) -> list[str]:
    """Each sample's group: samples that have a tag in common, directly or over others, are one group.

    Args:
        tags: of each sample, one at least: its patient, a digest of its picture (copies must not come into two splits), ….
    """
    owner: dict[str, str] = {}

    def root(tag: str) -> str:
        while owner.setdefault(tag, tag) != tag:
            owner[tag] = tag = owner[owner[tag]]
        return tag

    for own in tags:
        for tag in own:
            # The least tag names the group, so that the order of the samples does not matter.
            first, second = sorted((root(own[0]), root(tag)))
            owner[second] = first
    return [root(own[0]) for own in tags]


def check_whole(groups: Sequence[str], owners: Sequence[str], places: Sequence[Path]) -> None:
    """Refuse splits that were made by order and part a group.

    Args:
        groups: of each sample, from `joined`.
        owners: of each sample, its split.
        places: of each sample, its file.

    Raises:
        UsageError: two samples of a group are in different splits; names them.
    """
    first: dict[str, int] = {}
    for number, group in enumerate(groups):
        other = first.setdefault(group, number)
        if owners[other] != owners[number]:
            raise UsageError(
                f"{places[number]}: would be in {owners[number]}, but {places[other]}, a copy or the same place, in "
                f"{owners[other]}; use --split random, which keeps them together"
            )
