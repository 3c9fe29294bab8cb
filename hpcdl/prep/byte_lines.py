"""Text files of records, plain or gzip: found by name or glob, read line by line, or at the byte where a record begins.

A plan reads a file once from its start and keeps where each record begins; a worker then reads only its own records.
Offsets count decompressed bytes. In a gzip file going to one means unpacking all before it.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, cast

from hpcdl.errors import FailedError, UsageError

# A line is read whole; a file without line ends must not fill the memory.
MAX_LINE_BYTES = 16_000_000

_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"


def find_files(patterns: Sequence[str], option: str) -> tuple[Path, ...]:
    """The files that names and globs stand for, each once: in the order given, those of a glob sorted.

    Raises:
        UsageError: nothing given, a folder, or a name that no file has.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name its files, such as {option} '{path}/*'")
        # A name may hold brackets or stars itself, so what exists under it comes first.
        matches = [path] if path.exists() else _matches(path)
        files = [match.absolute() for match in matches if match.is_file()]
        if not files:
            raise UsageError(f"{pattern}: no such file; give {option} a file or a quoted glob")
        found.update(dict.fromkeys(files))
    if not found:
        raise UsageError(f"no file is given; name one or several with {option}")
    return tuple(found)


def file_state(path: Path) -> tuple[int, int]:
    """Size and time of the last change of a file, to see later on whether it is still the same.

    Raises:
        UsageError: there is no such file any more.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(f"{path}: not readable: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns


def check_unchanged(path: Path, state: tuple[int, int]) -> None:
    """Refuse a file that was changed since it was planned: what the plan says of its bytes is no longer true.

    Raises:
        FailedError: it was, or it is gone.
    """
    try:
        same = file_state(path) == state
    except UsageError as error:
        raise FailedError(str(error)) from None
    if not same:
        raise FailedError(f"{path}: has changed since it was planned; run the same command again")


class LineReader:
    """The lines of one file as bytes, without their ends; used with `with`.

    Attributes:
        offset: byte at which the next line begins.
        number: number of the line read last, counted from 1; None after a jump, when it is not known.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.number: int | None = 0

    def __enter__(self) -> LineReader:
        try:
            with self.path.open("rb") as file:
                packed = file.read(2) == _GZIP
            self._file = cast(IO[bytes], gzip.open(self.path, "rb") if packed else self.path.open("rb"))
        except OSError as error:
            raise UsageError(f"{self.path}: not readable: {error.strerror}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self._readline()
        if not line:
            raise StopIteration
        first = self.offset == 0
        self.offset += len(line)
        if self.number is not None:
            self.number += 1
        if len(line) >= MAX_LINE_BYTES and not line.endswith(b"\n"):
            raise UsageError(f"{self.where()}: a line of more than {MAX_LINE_BYTES // 1_000_000} MB: not a text file")
        if b"\0" in line:
            raise UsageError(
                f"{self.where()}: holds NUL bytes: a binary or UTF-16 file; give plain text, such as the output of "
                "iconv -f UTF-16 -t UTF-8"
            )
        return (line.removeprefix(_BOM) if first else line).rstrip(b"\r\n")

    def go_to(self, offset: int) -> None:
        """Make the line that begins at `offset` the next one."""
        if offset == self.offset:
            return
        try:
            self._file.seek(offset)
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(self._damage(error)) from None
        self.offset, self.number = offset, None

    def where(self) -> str:
        """The file and the line read last, for messages."""
        place = f"byte {self.offset}" if self.number is None else f"line {self.number}"
        return f"{self.path}, {place}"

    def _readline(self) -> bytes:
        try:
            return self._file.readline(MAX_LINE_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(self._damage(error)) from None

    def _damage(self, error: Exception) -> str:
        reason = " ".join(str(error).split())
        return f"{self.where()}: the file is damaged after here: {reason}; restore it, or leave it out"


def _matches(pattern: Path) -> list[Path]:
    parts = pattern.parts
    fixed = next((place for place, part in enumerate(parts) if any(sign in part for sign in "*?[")), len(parts))
    return sorted(Path(*parts[:fixed]).glob(str(Path(*parts[fixed:])))) if fixed < len(parts) else []
