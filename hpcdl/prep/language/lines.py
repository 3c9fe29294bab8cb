"""Text files as streams of bytes: compressed or not, in any encoding, read line by line, piece by piece or by offsets.

A place in a file is an offset in its *stream*: the bytes after decompression and, where lines could not be found in the
bytes themselves (UTF-16, Shift-JIS, …), after recoding to UTF-8. Plain files are entered anywhere; others are read up to
the place.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hpcdl.errors import FailedError, HpcdlError, UsageError

PIECE_BYTES = 1 << 17
MAX_LINE_BYTES = 1 << 26
_LOOKED_AT = 1 << 22

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    # UTF-32 first: its mark begins with UTF-16's.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_ARCHIVES = {b"PK\x03\x04": "a zip archive", b"\x28\xb5\x2f\xfd": "compressed with zstd"}
_DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError)
# Encodings in which the byte 10 is always the end of a line, and a cut between two lines needs no state.
_BY_BYTES = re.compile(r"utf-8|ascii|iso8859-\d+|cp125\d|cp437|cp85\d|koi8-[rtu]|mac-\w+")
_SPACES = b" \t\n\v\f\r"


@dataclass(frozen=True)
class Line:
    """A line or piece of text: its first line number (from 1), its bytes in the stream, and the text, ends as one \\n."""

    number: int
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class TextFile:
    """A text file that is known to be there; `encoding` is of its stream, `recode` what the stream is recoded from."""

    path: Path
    encoding: str
    recode: str | None
    first: int
    plain: bool

    def lines(self) -> Iterator[Line]:
        """All lines, without their ends; the last one needs none.

        Raises:
            UsageError: damaged, undecodable, not text, or a line of more than 64 MB; names the line.
        """
        number, start = 0, self.first
        with self._open() as stream:
            self._enter(stream, start)
            while raw := self._read(lambda: stream.readline(MAX_LINE_BYTES), number + 1):
                number += 1
                if len(raw) == MAX_LINE_BYTES:
                    raise UsageError(f"{self.path}:{number}: a line of more than 64 MB; is this a text of lines?")
                yield Line(number, start, start + len(raw), self.decode(raw, number).rstrip("\r\n"))
                start += len(raw)

    def pieces(self) -> Iterator[Line]:
        """The whole text in pieces of about 128 kB, cut where a word begins a line if there is such a place, else at a space.

        Raises:
            UsageError: as `lines`.
        """
        number, start, pending = 1, self.first, b""
        with self._open() as stream:
            self._enter(stream, start)
            while True:
                known = number
                raw = self._read(lambda: stream.read(PIECE_BYTES), known)
                data = pending + raw
                cut = len(data) if len(raw) < PIECE_BYTES else _cut(data, self.encoding)
                part, pending = data[:cut], data[cut:]
                if part:
                    yield Line(number, start, start + cut, self.decode(part, number))
                number += part.count(b"\n")
                start += cut
                if len(raw) < PIECE_BYTES:
                    return

    def spans(self, places: Iterable[tuple[int, int]]) -> Iterator[str]:
        """The texts between pairs of offsets, which must ascend.

        Raises:
            FailedError: the file is not what it was when the offsets were taken.
        """
        changed = f"{self.path}: is not what it was when the plan was made; run the command again"
        try:
            with self._open() as stream:
                position = 0
                for start, end in places:
                    if self.plain:
                        stream.seek(start)
                    else:
                        _skip(stream, start - position)
                    raw = stream.read(end - start)
                    position = end
                    if len(raw) != end - start:
                        raise FailedError(changed)
                    yield self.decode(raw, 0)
        except (*_DAMAGE, UsageError) as error:
            raise FailedError(f"{changed} ({' '.join(str(error).split())})") from None

    def offset_of(self, start: int, end: int, num_chars: int) -> int:
        """Where in the stream the first `num_chars` characters of the text from `start` to `end` end."""
        (text,) = self.spans([(start, end)])
        before = text[:num_chars].encode(self.encoding)
        # \r\n came as one character, so each that lies before is one byte more.
        with self._open() as stream:
            self._enter(stream, start)
            raw = stream.read(end - start)
        offset = place = 0
        for part in raw.split(b"\r\n")[:-1]:
            place += len(part) + 1
            if place > len(before):
                break
            offset += 1
        return start + len(before) + offset

    def decode(self, raw: bytes, number: int) -> str:
        """The text of some bytes that begin in line `number`, with \\r\\n as \\n.

        Raises:
            UsageError: bytes that the encoding does not have, or zeros; names the line.
        """
        try:
            text = raw.decode(self.encoding)
        except UnicodeDecodeError as error:
            line = number + raw[: error.start].count(b"\n")
            found = " ".join(f"{byte:02x}" for byte in raw[error.start : error.start + 4])
            raise UsageError(
                f"{self.path}:{line}: not {self.encoding} text (bytes {found}); give the right --encoding, such as "
                "latin-1, cp1252 or utf-16"
            ) from None
        if "\0" in text:
            line = number + text[: text.index("\0")].count("\n")
            raise UsageError(
                f"{self.path}:{line}: holds a zero byte: not a text file, or one that needs --encoding utf-16"
            )
        return text.replace("\r\n", "\n")

    def looks_like_utf8(self) -> bool:
        """Whether another encoding was given for what, as far as its first megabytes tell, is UTF-8."""
        if self.encoding in ("utf-8", "ascii") or self.recode is not None:
            return False
        with self._open() as stream:
            raw = self._read(lambda: stream.read(_LOOKED_AT), 1)
        try:
            # What was cut off may be in the middle of a character.
            codecs.getincrementaldecoder("utf-8")().decode(raw, final=len(raw) < _LOOKED_AT)
        except UnicodeDecodeError:
            return False
        return not raw.isascii()

    def _open(self) -> IO[bytes]:
        with self.path.open("rb") as file:
            opener = _opener(file.read(8))
        stream: Any = opener(self.path, "rb") if opener else self.path.open("rb", buffering=PIECE_BYTES)
        return stream if self.recode is None else io.BufferedReader(_Recoder(stream, self.recode, self.path))

    def _enter(self, stream: IO[bytes], start: int) -> None:
        self._read(lambda: _skip(stream, start), 1)

    def _read(self, read: Any, number: int) -> bytes:
        """What `read` gives, with damage told by file and line."""
        try:
            return bytes(read() or b"")
        except HpcdlError:
            raise
        except _DAMAGE as error:
            what = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(f"{self.path}: damaged near line {number}: {what}; get the file anew") from None


def text_file(path: Path, encoding: str) -> TextFile:
    """A text file, its byte order mark and compression looked at.

    Raises:
        UsageError: no such file, not readable, an archive, an unknown encoding, or a byte order mark of another one.
    """
    try:
        name = codecs.lookup(encoding).name.removesuffix("-sig")
        "".encode(name)
    except (LookupError, UnicodeError, ValueError):
        raise UsageError(
            f"encoding {encoding!r} is not known; give one such as utf-8, latin-1, cp1252, utf-16"
        ) from None
    try:
        if not path.is_file():
            what = "is a folder; give the files in it" if path.is_dir() else "no such file"
            raise UsageError(f"{path}: {what}")
        with path.open("rb") as file:
            magic = file.read(8)
        for mark, kind in _ARCHIVES.items():
            if magic.startswith(mark):
                raise UsageError(f"{path}: {kind}; unpack it first (gzip, bzip2 and xz are read as they are)")
        opener = _opener(magic)
        if opener:
            with opener(path, "rb") as stream:
                magic = stream.read(8)
    except _DAMAGE as error:
        raise UsageError(f"{path}: not readable: {getattr(error, 'strerror', None) or error}") from None
    found = next(((mark, kind) for mark, kind in _BOMS if magic.startswith(mark)), None)
    first = 0
    if found is not None:
        mark, kind = found
        if not name.startswith(("utf-", kind)):
            raise UsageError(
                f"{path}: begins with the byte order mark of {kind}, not {encoding}; give --encoding {kind}"
            )
        name = kind
        # The codecs of UTF-16 and UTF-32 eat their mark.
        first = len(mark) if kind == "utf-8" else 0
    if _BY_BYTES.fullmatch(name):
        return TextFile(path, name, None, first, plain=opener is None)
    return TextFile(path, "utf-8", name, 0, plain=False)


class _Recoder(io.RawIOBase):
    """A stream of bytes in one encoding as a stream of UTF-8."""

    def __init__(self, stream: IO[bytes], encoding: str, path: Path) -> None:
        self._stream, self._encoding, self._path = stream, encoding, path
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready, self._lines, self._ended = b"", 1, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what there is; 0 at the end."""
        while not self._ready and not self._ended:
            raw = self._stream.read(PIECE_BYTES)
            self._ended = not raw
            try:
                self._ready = self._decoder.decode(raw, final=self._ended).encode()
            except UnicodeError as error:
                reason = getattr(error, "reason", error)
                raise UsageError(
                    f"{self._path}: not {self._encoding} text after line {self._lines} ({reason}); give the right --encoding"
                ) from None
            self._lines += self._ready.count(b"\n")
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        """Close the source, too."""
        self._stream.close()
        super().close()


def _opener(magic: bytes) -> Any:
    return next((opener for mark, opener in _OPENERS.items() if magic.startswith(mark)), None)


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0:
        part = stream.read(min(count, PIECE_BYTES))
        if not part:
            return
        count -= len(part)


def _cut(data: bytes, encoding: str) -> int:
    """Where to end a piece: before the last line that begins with a word, else before the last space, else after a character."""
    place = data.rfind(b"\n", 0, len(data) - 1)
    while place > 0:
        if data[place + 1] not in _SPACES:
            return place + 1
        place = data.rfind(b"\n", 0, place)
    place = data.rfind(b" ")
    # Lines of spaces only are no reason to collect the whole file.
    if place > 0:
        return place
    place = len(data) - 1
    if encoding == "utf-8":
        while place > 1 and data[place] & 0xC0 == 0x80:
            place -= 1
    return place - (data[place - 1] == 13 and place > 1)
