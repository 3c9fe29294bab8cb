"""Write one shard: an HDF5 file of contiguous fields, byte for byte the same whenever the same data are written."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hpcdl.errors import FailedError

CHECK_SUMS = "crc32"
"""Root attribute: CRC-32 of each field's values, in the order of the fields' names."""

# Linux writes at most 2 GB at once.
_PIECE_BYTES = 1 << 30


def write_shard_file(path: Path, fields: Mapping[str, npt.NDArray[Any]], attributes: Mapping[str, Any]) -> None:
    """Write a whole shard and wait until it is on disk.

    Args:
        path: the file; one that is there is replaced.
        fields: name to array; the first axis of every field is the sample, so all have the same length.
        attributes: root attributes: strings, numbers, one-dimensional arrays.

    Raises:
        FailedError: fields of unequal length.
        OSError: the disk is full, or the folder cannot be written.
    """
    lengths = {name: len(array) for name, array in fields.items()}
    if len(set(lengths.values())) > 1:
        raise FailedError(f"{path}: fields of unequal length: {lengths}; every field needs one entry a sample")
    # A fixed file version, and no times: bytes must not depend on when or by how many processes they were written.
    # Fields start on pages, so that a mapped file is aligned for every dtype.
    arrays = {name: np.ascontiguousarray(array) for name, array in fields.items()}
    sums = np.array([zlib.crc32(_bytes_of(arrays[name])) for name in sorted(arrays)], np.uint32)
    with h5py.File(path, "w", libver=("v110", "v110"), alignment_threshold=1, alignment_interval=4096) as file:
        offsets = {name: _reserve(file, name, array) for name, array in arrays.items()}
        for name, value in {**attributes, CHECK_SUMS: sums}.items():
            file.attrs[name] = value
    # The values are written beside HDF5, which would keep all other threads of this process waiting.
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for name, offset in offsets.items():
            if offset is not None:
                _write_at(descriptor, arrays[name], offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reserve(file: h5py.File, name: str, array: npt.NDArray[Any]) -> int | None:
    """Make a field with room for its values in one piece; where they go in the file, None when there are none."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    layout.set_obj_track_times(False)
    kind = h5py.h5t.py_create(array.dtype, logical=True)
    place = h5py.h5s.create_simple(array.shape) if array.ndim else h5py.h5s.create(h5py.h5s.SCALAR)
    offset: int | None = h5py.h5d.create(file.id, name.encode(), kind, place, layout).get_offset()
    return offset


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _write_at(descriptor: int, array: npt.NDArray[Any], offset: int) -> None:
    data = _bytes_of(array)
    while len(data):
        written = os.pwrite(descriptor, data[:_PIECE_BYTES], offset)
        data, offset = data[written:], offset + written


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says of itself; `offsets` tell where in the file each field's values begin, in bytes."""

    num_samples: int
    attributes: Mapping[str, Any]
    offsets: Mapping[str, int]


def read_shard_header(path: Path) -> ShardHeader:
    """The header of a shard.

    Raises:
        FailedError: not a whole HDF5 file, or one without fields.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            lengths = {len(file[name]) for name in file}
            attributes = {name: _plain(value) for name, value in file.attrs.items()}
            places = {name: file[name].id.get_offset() for name in file}
    except Exception as error:  # on a damaged file h5py raises what the damage happens to lead to, even KeyError
        raise FailedError(f"{path}: not readable as a shard: {' '.join(str(error).split())}") from None
    if len(lengths) != 1:
        raise FailedError(
            f"{path}: not a shard: it needs fields, all of one length; it has the lengths {sorted(lengths)}"
        )
    offsets = {name: int(offset) for name, offset in places.items() if offset is not None}
    return ShardHeader(lengths.pop(), attributes, offsets)


def values_are_whole(path: Path, header: ShardHeader) -> bool:
    """Whether all fields hold what was written, by the check sums that the shard carries."""
    sums = np.atleast_1d(header.attributes.get(CHECK_SUMS, ()))
    with h5py.File(path, "r", locking=False) as file:
        names = sorted(file)
        return len(sums) == len(names) and all(
            zlib.crc32(_bytes_of(np.ascontiguousarray(file[name][...]))) == total
            for name, total in zip(names, sums.tolist(), strict=True)
        )


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk, so that a rename after it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
