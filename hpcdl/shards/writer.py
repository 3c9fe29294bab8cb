"""Write one shard: an HDF5 file of contiguous fields, byte for byte the same whenever the same data are written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hpcdl.errors import FailedError


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
    with h5py.File(path, "w", libver=("v110", "v110"), alignment_threshold=1024, alignment_interval=4096) as file:
        for name, array in fields.items():
            file.create_dataset(name, data=np.ascontiguousarray(array), track_times=False)
        for name, value in attributes.items():
            file.attrs[name] = value
    sync(path)


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


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk, so that a rename after it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
