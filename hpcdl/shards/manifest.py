"""manifest.json: what a data set holds, with a digest of every shard. Imports nothing heavy: the login node reads it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdl.errors import FailedError, UsageError

FORMAT = "hpcdl-shards"
VERSION = 1
NAME = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """One HDF5 file of a split; `sha256` is of the whole file."""

    file: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A data set's manifest; `entries` is the whole JSON document, the other fields are its checked parts."""

    folder: Path
    kind: str
    digest: str
    fields: Mapping[str, Mapping[str, Any]]
    splits: Mapping[str, tuple[Shard, ...]]
    entries: Mapping[str, Any]

    def num_samples(self, split: str) -> int:
        """Samples of a split, 0 for one that the data set does not have."""
        return sum(shard.num_samples for shard in self.splits.get(split, ()))

    @property
    def class_names(self) -> list[str]:
        """Names of the classes by dense index; empty for kinds without classes."""
        return [entry["name"] for entry in self.entries.get("classes", [])]


def load_manifest(folder: Path) -> Manifest:
    """Read and check `folder`/manifest.json.

    Raises:
        UsageError: no such folder or manifest, not JSON, another format or version, or a digest that does not fit.
    """
    if not (folder / NAME).is_file():
        what = "the data set does not exist"
        if folder.exists():
            unfinished = "the data set has no manifest.json (an unfinished data set?)"
            what = unfinished if folder.is_dir() else "is a file; a data set is a folder"
        raise UsageError(f"{folder}: {what}; make it with `hpcdl preprocess`")
    return read_manifest(folder / NAME)


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest file, wherever a copy of it lies; `folder` is then where that copy lies.

    Raises:
        UsageError: not readable, not JSON, another format or version, or a digest that does not fit.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not readable as a manifest: {error}") from None
    if not isinstance(entries, dict) or entries.get("format") != FORMAT or entries.get("version") != VERSION:
        raise UsageError(f"{path}: not a manifest of format {FORMAT!r} version {VERSION}; preprocess the data again")
    try:
        splits = {
            split: tuple(
                Shard(_plain_name(path, shard["file"]), shard["num_samples"], shard["num_bytes"], shard["sha256"])
                for shard in body["shards"]
            )
            for split, body in entries["splits"].items()
        }
        manifest = Manifest(path.parent, entries["kind"], entries["digest"], entries["fields"], splits, entries)
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path}: incomplete manifest (missing {error}); preprocess the data again") from None
    if manifest.digest != data_digest(entries["fields"], entries["splits"]):
        raise UsageError(f"{path}: was changed by hand: its digest does not fit its shards; preprocess the data again")
    return manifest


def _plain_name(path: Path, file: str) -> str:
    """The name of a shard, which lies beside the manifest and nowhere else: copies are written under it."""
    if not file or file != Path(file).name or file.startswith("."):
        raise UsageError(f"{path}: names a shard {file!r}; shards lie in the data set's own folder")
    return file


def build_manifest(
    kind: str, fields: Mapping[str, Any], splits: Mapping[str, Any], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest document with its digest; `splits` and `fields` as in docs/shard-format.md, `extra` the kind's own keys."""
    head = {"format": FORMAT, "version": VERSION, "kind": kind, "digest": data_digest(fields, splits)}
    return {**head, "fields": dict(fields), "splits": dict(splits), **extra}


def save_manifest(folder: Path, entries: Mapping[str, Any]) -> Path:
    """Write manifest.json so that a reader sees the old one or the new one, never a part."""
    path = folder / NAME
    temporary = folder / f".{NAME}.{os.getpid()}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(entries, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path


def data_digest(fields: Mapping[str, Any], splits: Mapping[str, Any]) -> str:
    """sha256 over fields and the shards' names, counts and digests, in manifest order."""
    shards = {
        split: [[s["file"], s["num_samples"], s["sha256"]] for s in body["shards"]] for split, body in splits.items()
    }
    text = json.dumps([fields, shards], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_shard(manifest: Manifest, shard: Shard) -> None:
    """Check one shard against the manifest.

    Raises:
        FailedError: it is missing, or its size or sha256 is not the manifest's.
    """
    path = manifest.folder / shard.file
    mend = "restore it, or run the same `hpcdl preprocess` again to write it anew"
    if not path.is_file():
        raise FailedError(f"{path}: the shard is missing; {mend}")
    if path.stat().st_size != shard.num_bytes or file_digest(path) != shard.sha256:
        raise FailedError(f"{path}: the shard was changed after the manifest was written; {mend}")
