"""Copies of shards on a node's own disk: made once a node, verified while they are copied, removed at the end.

What the copies are for: of many ranks that draw samples in random order, each reads every shard in the course of time, and a
shared file system would serve each of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from hpcdl.errors import FailedError
from hpcdl.shards.manifest import NAME, Manifest, Shard, file_digest

PREFIX = "hpcdl-stage-"
_PIECE_BYTES = 8 << 20
# Free space that stays on the node's disk.
_SPARE = 0.02


def stage_folder(place: str | None, owner: str, digest: str) -> Path:
    """Where the copies for one attempt at a run lie on this node.

    Args:
        place: a folder of the node's own disk with variables such as $SLURM_JOB_ID; $TMPDIR, or /tmp, when None.
        owner: the attempt, by a text that no other has: two that shared a folder would remove it under each other.
        digest: of the data set.

    Raises:
        OSError: a variable is not set.
    """
    chosen = os.path.expandvars(place) if place else tempfile.gettempdir()
    if "$" in chosen:
        raise OSError(f"{chosen}: a variable in it is not set on this node")
    return Path(chosen) / f"{PREFIX}{hashlib.sha256(owner.encode()).hexdigest()[:12]}-{digest[:16]}"


def used_shards(manifest: Manifest, splits: Sequence[str]) -> list[Shard]:
    """The shards of some splits."""
    return [shard for split in splits for shard in manifest.splits.get(split, ()) if shard.num_samples]


def make_room(folder: Path, shards: Sequence[Shard]) -> None:
    """Make the folder, only for its owner, when what is still missing in it fits on its disk.

    Raises:
        OSError: it cannot be made, belongs to somebody else, or there is not enough room.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    # In /tmp somebody else may have been here first, with a link to where we must not write.
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise OSError(f"{folder}: is not a folder that only its owner, this user, can write")
    missing = sum(shard.num_bytes for shard in shards if _size(folder / shard.file) != shard.num_bytes)
    usage = shutil.disk_usage(folder)
    free = usage.free - _SPARE * usage.total
    if missing > free:
        remove(folder)
        raise OSError(f"{folder}: needs {missing / 1e9:.1f} GB, {max(free, 0) / 1e9:.1f} GB are free")


def copy_shards(manifest: Manifest, folder: Path, shards: Sequence[Shard], advance: Callable[[], None]) -> int:
    """Copy shards and compare their digests on the way; good copies that are there already stay.

    Returns:
        Bytes read from the data set's own folder.

    Raises:
        FailedError: a shard of the data set is missing or damaged; names it.
        OSError: a copy cannot be written.
    """
    read = 0
    for shard in shards:
        copy = folder / shard.file
        if _size(copy) != shard.num_bytes or file_digest(copy) != shard.sha256:
            read += _copy(manifest.folder / shard.file, copy, shard)
        advance()
    return read


def finish(manifest: Manifest, folder: Path) -> None:
    """Make the copies a data set, once all of them are there."""
    shutil.copyfile(manifest.folder / NAME, folder / f".{NAME}.tmp")
    (folder / f".{NAME}.tmp").replace(folder / NAME)


def remove(folder: Path) -> None:
    """Remove a stage folder with its copies; anything else is left alone."""
    if folder.name.startswith(PREFIX):
        shutil.rmtree(folder, ignore_errors=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _copy(source: Path, copy: Path, shard: Shard) -> int:
    temporary = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
    found = hashlib.sha256()
    try:
        try:
            incoming = source.open("rb", buffering=0)
        except OSError as error:
            raise _damaged(source, f"cannot be read ({error.strerror})") from None
        with incoming, temporary.open("wb") as outgoing:
            while piece := _piece(incoming, source):
                found.update(piece)
                outgoing.write(piece)
        if found.hexdigest() != shard.sha256:
            raise _damaged(source, "was changed after the manifest was written")
        temporary.replace(copy)
    finally:
        temporary.unlink(missing_ok=True)
    return shard.num_bytes


def _piece(incoming: io.RawIOBase, source: Path) -> bytes:
    try:
        return incoming.read(_PIECE_BYTES) or b""
    except OSError as error:
        raise _damaged(source, f"cannot be read ({error.strerror})") from None


def _damaged(source: Path, how: str) -> FailedError:
    return FailedError(
        f"{source}: the shard {how}; `hpcdl data check {source.parent}` tells its samples and what else is damaged"
    )
