"""What a kind of input hands to the runner: a plan, made of tasks that each write one shard.

A kind is a module of this package with

- `Settings`: a frozen dataclass, each field followed by its help, from which the command line is made;
- `FILES`, a constant: the settings that name files or globs, which the login node looks for before a job is queued;
- `plan(settings) -> Plan`: checks all inputs and says which shards there will be, before anything is written;
- `make_shard(plan, task) -> ShardContent`: what one shard holds, in any process, in any order, always the same;
- `manifest_entries(plan, attributes) -> dict`: the kind's own manifest keys, from the attributes of all shards by name;
- `summary(plan, entries) -> list[str]`: lines to print at the end.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hpcdl.errors import UsageError
from hpcdl.shards.manifest import file_digest

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Source:
    """An input file, as the manifest records it."""

    role: str
    path: str
    sha256: str
    num_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The entry of the manifest's `sources`."""
        return {"role": self.role, "path": self.path, "sha256": self.sha256, "num_bytes": self.num_bytes}


@dataclass(frozen=True, eq=False)
class ShardTask:
    """One shard to write; `items` is what the kind needs to know about its samples.

    `where` names its part of the input in error messages, `num_bytes` is about how large the file gets.
    """

    name: str
    split: str
    items: Any
    where: str
    num_bytes: int


@dataclass(frozen=True, eq=False)
class ShardContent:
    """What a shard holds.

    Attributes:
        fields: name to array; the first axis of every one is the sample.
        attributes: sums for the manifest: numbers and one-dimensional arrays.
        num_dropped: samples of the task that are not in the fields.
    """

    fields: Mapping[str, npt.NDArray[Any]]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    num_dropped: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """Everything that decides the bytes of a data set; kinds add fields of their own. Picklable.

    Attributes:
        digest: sha256 of the settings and the sources' contents, written into every shard.
        settings: as the manifest records them.
        fields: the manifest's `fields`.
        shards: in sample order, split by split.
        counts: what was left out per split before any pixel was read, such as {"train": {"num_buffer": 12}}.
    """

    digest: str
    settings: Mapping[str, Any]
    sources: tuple[Source, ...]
    fields: Mapping[str, Mapping[str, Any]]
    shards: tuple[ShardTask, ...]
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class Kind(Protocol):
    """The module of an input kind."""

    Settings: type[Any]

    def plan(self, settings: Any) -> Plan:
        """See the module docstring."""

    def make_shard(self, plan: Any, task: ShardTask) -> ShardContent:
        """See the module docstring."""

    def manifest_entries(self, plan: Any, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """See the module docstring."""

    def summary(self, plan: Any, entries: Mapping[str, Any]) -> list[str]:
        """See the module docstring."""


def describe_sources(paths: Sequence[tuple[str, Path]]) -> tuple[Source, ...]:
    """Size and sha256 of (role, path) pairs, a few files at once.

    Raises:
        UsageError: a file cannot be read.
    """

    def describe(pair: tuple[str, Path]) -> Source:
        role, path = pair
        try:
            return Source(role, str(path), file_digest(path), path.stat().st_size)
        except OSError as error:
            raise UsageError(f"{path}: not readable: {error.strerror}") from None

    # Hashing leaves the interpreter lock, so threads do run side by side.
    with ThreadPoolExecutor(4) as pool:
        return tuple(pool.map(describe, paths))


def shard_tasks(
    items: Mapping[str, npt.NDArray[Any]],
    sample_bytes: int,
    shard_mb: int,
    where: Callable[[str, npt.NDArray[Any]], str],
) -> tuple[ShardTask, ...]:
    """Tasks of about equal size, none above `shard_mb` megabytes, split by split.

    Args:
        items: of each split, one entry a sample, in sample order.
        sample_bytes: what one sample takes in a shard.
        where: names a task's part of the input, from the split and the task's items.
    """
    tasks: list[ShardTask] = []
    for split in SPLITS:
        samples = items.get(split, ())
        if len(samples) == 0:
            continue
        num_shards = math.ceil(len(samples) * sample_bytes / (shard_mb * 1e6))
        # Shards of a split differ by one sample at most, so workers end together.
        for number, part in enumerate(np.array_split(samples, min(num_shards, len(samples)))):
            tasks.append(ShardTask(f"{split}-{number:05d}", split, part, where(split, part), len(part) * sample_bytes))
    return tuple(tasks)


def plan_digest(*parts: Any) -> str:
    """sha256 of JSON-able values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
