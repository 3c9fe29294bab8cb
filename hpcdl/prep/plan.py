"""What a kind of input hands to the runner: a plan, made of tasks that each write one shard.

A kind is a module of this package with

- `Settings`: a frozen dataclass, each field followed by its help, from which the command line is made;
- `plan(settings) -> Plan`: checks all inputs and says which shards there will be, before anything is written;
- `write_shard(plan, task, path)`: writes one shard, in any process, in any order, always the same bytes;
- `manifest_entries(plan, attributes) -> dict`: the kind's own manifest keys, from the attributes of all shards by name;
- `summary(plan, entries) -> list[str]`: lines to print at the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

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

    def write_shard(self, plan: Any, task: ShardTask, path: Path) -> None:
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


def plan_digest(*parts: Any) -> str:
    """sha256 of JSON-able values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
