"""Samples of a split by number, gathered from memory-mapped shards."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hpcdl.errors import FailedError
from hpcdl.shards.manifest import Manifest

Array = npt.NDArray[Any]

# Samples from this size on are copied one by one, straight to their place; smaller ones shard by shard.
_LARGE_BYTES = 16_384
# Copying less than this is not worth waking another thread.
_WORTH_THREADS_BYTES = 1_000_000
# Whole shards are read ahead when the split takes no more than this share of the memory that is free.
_MEMORY_SHARE = 0.5


class ShardReader:
    """All samples of a split as one sequence. Shards are mapped at first use, once a process; nothing stays open.

    Args:
        manifest: the data set.
        split: which of its splits.
        names: the fields to read.
        threads: that copy side by side; one copies at the speed at which a core gets through small pages.

    Attributes:
        names: the fields that are read.
        sample_bytes: of one sample, all these fields together.
    """

    def __init__(self, manifest: Manifest, split: str, names: tuple[str, ...], threads: int = 1) -> None:
        self.manifest, self.names, self.threads = manifest, names, threads
        self.shards = [shard for shard in manifest.splits.get(split, ()) if shard.num_samples]
        self.starts = np.cumsum([0] + [shard.num_samples for shard in self.shards])
        self._maps: list[dict[str, Array] | None] = [None] * len(self.shards)
        self._kinds = {
            name: (np.dtype(manifest.fields[name]["dtype"]), tuple(manifest.fields[name]["shape"])) for name in names
        }
        self.sample_bytes = sum(int(dtype.itemsize * np.prod(shape)) for dtype, shape in self._kinds.values())
        self._process = os.getpid()
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def empty(self, number: int) -> dict[str, Array]:
        """Arrays for `number` samples, to gather into."""
        return {name: np.empty((number, *shape), dtype) for name, (dtype, shape) in self._kinds.items()}

    def gather(self, indices: npt.NDArray[np.int64], out: Mapping[str, Array] | None = None) -> Mapping[str, Array]:
        """Samples by number, in the order asked for: name to an array of shape (len(indices), …).

        Args:
            indices: sample numbers, repeats allowed.
            out: where to put them, as `empty` makes it; new arrays without it.

        Raises:
            FailedError: a shard cannot be read, or is not what the manifest says; names it and its samples.
        """
        if out is None:
            out = self.empty(len(indices))
        self._after_fork()
        if self.threads == 1 or len(indices) * self.sample_bytes < _WORTH_THREADS_BYTES:
            self._gather(indices, out)
            return out
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads - 1, "hpcdl-copy")
        size = -(-len(indices) // self.threads)
        parts = [slice(start, start + size) for start in range(0, len(indices), size)]
        others = [
            self._pool.submit(self._gather, indices[part], {name: array[part] for name, array in out.items()})
            for part in parts[1:]
        ]
        self._gather(indices[parts[0]], {name: array[parts[0]] for name, array in out.items()})
        for other in others:
            other.result()
        return out

    def _gather(self, indices: npt.NDArray[np.int64], out: Mapping[str, Array]) -> None:
        if len(self.shards) == 1:
            for name, mapped in self._map(0).items():
                np.take(mapped, indices, axis=0, out=out[name], mode="clip")
            return
        owner = np.searchsorted(self.starts, indices, side="right") - 1
        rows = indices - self.starts[owner]
        if self.sample_bytes >= _LARGE_BYTES:
            for place, (number, row) in enumerate(zip(owner.tolist(), rows.tolist(), strict=True)):
                for name, mapped in self._map(number).items():
                    out[name][place] = mapped[row]
            return
        by_shard = np.argsort(owner, kind="stable")
        cuts = np.searchsorted(owner[by_shard], np.arange(len(self.shards) + 1)).tolist()
        for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
            if start < stop:
                places = by_shard[start:stop]
                for name, mapped in self._map(number).items():
                    out[name][places] = mapped[rows[places]]

    def _after_fork(self) -> None:
        if self._process != os.getpid():  # a child has none of its parent's threads, and opens its own files
            self._maps, self._pool, self._process = [None] * len(self.shards), None, os.getpid()

    def _map(self, number: int) -> dict[str, Array]:
        mapped = self._maps[number]
        if mapped is None:
            mapped = self._maps[number] = self._open(number)
        return mapped

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": [None] * len(self.shards), "_pool": None}

    def _open(self, number: int) -> dict[str, Array]:
        shard = self.shards[number]
        path = self.manifest.folder / shard.file
        first = int(self.starts[number])
        which = f"{path} (samples {first}–{first + shard.num_samples - 1} of its split)"
        try:
            with h5py.File(path, "r", locking=False) as file:
                places = {name: _place(file[name]) for name in self.names}
            fields = _mapped(path, places, self._fits_memory)
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise FailedError(
                f"{which}: not readable as a shard: {' '.join(str(error).split())}; `hpcdl data check "
                f"{self.manifest.folder}` says what else is damaged"
            ) from None
        for name, array in fields.items():
            dtype, shape = self._kinds[name]
            if array.dtype != dtype or array.shape != (shard.num_samples, *shape):
                raise FailedError(
                    f"{which}: field {name!r} holds {array.dtype} of shape {array.shape}, the manifest says {dtype} of shape "
                    f"{(shard.num_samples, *shape)}; the shard is damaged or of another data set"
                )
        return fields

    @property
    def _fits_memory(self) -> bool:
        return sum(shard.num_bytes for shard in self.shards) < _MEMORY_SHARE * _available_bytes()


def _available_bytes() -> int:
    """Memory that can be had without swapping: what is free, and what the page cache would give up."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) * 1024, _job_limit_bytes())
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _job_limit_bytes() -> int:
    """What the job may use, which Slurm sets by control groups; very much when nothing limits it."""
    for root, file in (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path("/proc/self/cgroup").read_text().splitlines():
                _, controllers, group = line.split(":", 2)
                if controllers in ("", "memory"):
                    text = Path(f"{root}{group}/{file}").read_text().strip()
                    if text.isdecimal():
                        return int(text)
    return 1 << 62


# Where a field lies in its file: an offset to map from, or None and the values of a field that cannot be mapped.
_Place = tuple[int | None, Array | None, np.dtype[Any], tuple[int, ...]]


def _place(dataset: h5py.Dataset) -> _Place:
    offset = dataset.id.get_offset()
    if offset is None or dataset.chunks is not None or dataset.compression is not None:
        return None, np.asarray(dataset[...]), dataset.dtype, dataset.shape
    return offset, None, dataset.dtype, dataset.shape


def _mapped(path: Path, places: Mapping[str, _Place], ahead: bool) -> dict[str, Array]:
    """Read-only arrays over one map of the file, which the kernel reads ahead when asked to."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if ahead:
        # Shuffled access looks random to the kernel, but in an epoch every sample's turn comes.
        memory.madvise(mmap.MADV_WILLNEED)
    arrays: dict[str, Array] = {}
    for name, (offset, values, dtype, shape) in places.items():
        if values is not None:
            arrays[name] = values
            continue
        count = int(np.prod(shape))
        if offset is not None and offset + count * dtype.itemsize > len(memory):
            raise ValueError(f"it ends within field {name!r}")
        arrays[name] = np.frombuffer(memory, dtype, count, offset or 0).reshape(shape)
    return arrays
