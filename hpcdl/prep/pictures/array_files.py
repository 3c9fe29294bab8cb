"""Stored arrays of samples, read in runs of rows without loading them whole: idx files (MNIST), .npy files, members of .npz.

idx is described at http://yann.lecun.com/exdb/mnist; .npy in numpy.lib.format. Pickled objects are never loaded.
"""

from __future__ import annotations

import contextlib
import gzip
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from hpcdl.errors import FailedError, UsageError

Array = npt.NDArray[Any]

_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
# Rows are read in runs of about this many bytes.
_RUN_BYTES = 4_000_000
# What unpacking a damaged file raises besides OSError.
_ZLIB = (zlib.error, lzma.LZMAError, NotImplementedError)


@dataclass(frozen=True)
class ArrayFile:
    """An array in a file; `member` is its name in an .npz, `start` the byte at which its values begin."""

    path: Path
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int

    @property
    def label(self) -> str:
        """Names the array in messages."""
        return str(self.path) if self.member is None else f"{self.path}: array {self.member!r}"

    def runs(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, Array]]:
        """Rows `first` to `last` (not included) in runs: (number of the first row, rows).

        Raises:
            FailedError: the file ends early or is damaged; names file and row.
        """
        last = self.shape[0] if last is None else last
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        step = max(1, _RUN_BYTES // max(1, row_bytes))
        row = first
        try:
            with _open(self.path, self.member) as file:
                file.seek(self.start + first * row_bytes)
                while row < last:
                    number = min(step, last - row)
                    data = _read_exactly(file, number * row_bytes)
                    yield row, np.frombuffer(data, self.dtype).reshape(number, *self.shape[1:])
                    row += number
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, *_ZLIB) as error:
            raise FailedError(f"{self.label}: not readable at row {row} (truncated or damaged?): {error}") from None

    def read(self) -> Array:
        """All rows; for labels."""
        parts = [rows for _, rows in self.runs()]
        return np.concatenate(parts) if parts else np.empty(self.shape, self.dtype)

    def rows(self, numbers: Sequence[int]) -> Iterator[Array]:
        """The rows of these ascending numbers, one by one."""
        wanted = np.asarray(numbers, np.int64)
        for row, rows in self.runs(int(wanted[0]), int(wanted[-1]) + 1):
            yield from rows[wanted[(wanted >= row) & (wanted < row + len(rows))] - row]


def is_array_file(path: Path) -> bool:
    """Whether a file holds arrays, by its ending, or for idx files by its first bytes."""
    if path.suffix.lower() in (".npy", ".npz"):
        return True
    try:
        with _open(path, None) as file:
            return _idx_head(file) is not None
    except (OSError, EOFError, *_ZLIB):
        return False


def open_arrays(path: Path) -> dict[str, ArrayFile]:
    """The arrays of a file by name; idx and .npy files hold one, of the name "".

    Raises:
        UsageError: not such a file, damaged at its head, arrays of objects or in Fortran order.
    """
    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                members = [name for name in archive.namelist() if name.endswith(".npy")]
            return {name.removesuffix(".npy"): _open_npy(path, name) for name in members}
        if path.suffix.lower() == ".npy":
            return {"": _open_npy(path, None)}
        return {"": _open_idx(path)}
    except (OSError, EOFError, ValueError, struct.error, zipfile.BadZipFile, *_ZLIB) as error:
        raise UsageError(f"{path}: not readable as arrays (truncated or damaged?): {error}") from None


def _open_npy(path: Path, member: str | None) -> ArrayFile:
    with _open(path, member) as file:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(file)
        array = ArrayFile(path, member, shape, dtype, file.tell())
    if dtype.hasobject:
        raise UsageError(f"{array.label}: holds pickled objects, which are never loaded; store numbers or strings")
    if fortran and len(shape) > 1:
        raise UsageError(f"{array.label}: is stored in Fortran order; store numpy.ascontiguousarray of it")
    return array


def _idx_head(file: BinaryIO) -> tuple[int, int] | None:
    """(type code, number of axes) of an idx file."""
    head = file.read(4)
    known = len(head) == 4 and head[:2] == b"\0\0" and head[2] in _IDX_TYPES and 1 <= head[3] <= 5
    return (head[2], head[3]) if known else None


def _open_idx(path: Path) -> ArrayFile:
    with _open(path, None) as file:
        head = _idx_head(file)
        if head is None:
            raise UsageError(f"{path}: is no idx file (it must begin with two zero bytes, a type and a number of axes)")
        code, axes = head
        shape = struct.unpack(f">{axes}I", _read_exactly(file, 4 * axes))
    return ArrayFile(path, None, shape, np.dtype(_IDX_TYPES[code]), 4 + 4 * axes)


@contextlib.contextmanager
def _open(path: Path, member: str | None) -> Iterator[Any]:
    """The bytes of an array file, unpacked."""
    if member is not None:
        with zipfile.ZipFile(path) as archive, archive.open(member) as inside:
            yield inside
        return
    with path.open("rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b"
    with gzip.open(path) if zipped else path.open("rb") as file:
        yield file


def _read_exactly(file: BinaryIO, size: int) -> bytes:
    parts = []
    while size > 0:
        part = file.read(size)
        if not part:
            raise EOFError(f"the file ends {size} bytes early")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
