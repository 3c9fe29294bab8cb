"""Every shard is there, whole, and holds what the manifest says."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from hpcdl.check.findings import Report
from hpcdl.errors import FailedError
from hpcdl.shards.manifest import Manifest, Shard, verify_shard
from hpcdl.shards.writer import read_shard_header

_MOST_TOLD = 20


def check_shards(manifest: Manifest, digests: bool, advance: Callable[[], None], report: Report) -> bool:
    """Look at all shards; true when they can be read on.

    Args:
        digests: read every byte and compare sha256, instead of sizes and numbers of samples alone.
        advance: called after each shard.
    """
    shards = [
        (split, first, shard) for split, members in manifest.splits.items() for first, shard in _numbered(members)
    ]

    def look(entry: tuple[str, int, Shard]) -> str:
        split, first, shard = entry
        try:
            _look(manifest, shard, digests)
        except FailedError as error:
            samples = (
                f"samples {first}–{first + shard.num_samples - 1} of {split}" if shard.num_samples else "no samples"
            )
            return f"{error} ({samples})"
        finally:
            advance()
        return ""

    # Hashing leaves the interpreter lock, so threads do run side by side.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        damaged = [text for text in pool.map(look, shards) if text]
    for text in damaged[:_MOST_TOLD]:
        report.add("fail", text)
    if len(damaged) > _MOST_TOLD:
        report.add("fail", f"and {len(damaged) - _MOST_TOLD} more shards")
    if not damaged:
        how = "digests are right" if digests else "sizes and numbers of samples are right (digests not read)"
        total = sum(shard.num_bytes for _, _, shard in shards)
        report.add("ok", f"{len(shards)} shards of {total / 1e6:.1f} MB: {how}")
    report.figures["num_shards"] = len(shards)
    report.figures["num_damaged"] = len(damaged)
    return not damaged


def _numbered(shards: tuple[Shard, ...]) -> list[tuple[int, Shard]]:
    """Each shard with the number of its first sample in the split."""
    numbered, first = [], 0
    for shard in shards:
        numbered.append((first, shard))
        first += shard.num_samples
    return numbered


def _look(manifest: Manifest, shard: Shard, digests: bool) -> None:
    path = manifest.folder / shard.file
    if digests:
        try:
            verify_shard(manifest, shard)
        except OSError as error:
            raise FailedError(f"{path}: cannot be read: {error.strerror}") from None
    elif not path.is_file() or path.stat().st_size != shard.num_bytes:
        raise FailedError(f"{path}: the shard is missing or not of the size that the manifest says")
    num_samples = read_shard_header(path).num_samples
    if num_samples != shard.num_samples:
        raise FailedError(f"{path}: holds {num_samples} samples, the manifest says {shard.num_samples}")
