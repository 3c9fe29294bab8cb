"""CSV files of series: their delimiter and header, records one by one with the byte where each begins, cells as numbers."""

from __future__ import annotations

import codecs
import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hpcdl.errors import UsageError, suggestion
from hpcdl.prep.byte_lines import LineReader

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}

MISSING = frozenset({"", "-", "--", ".", "?", "na", "n/a", "#n/a", "#na", "<na>", "nan", "-nan", "nil", "none", "null"})
"""Cells that stand for a missing value, in lower case."""


@dataclass(frozen=True)
class Layout:
    """How a CSV file is written; `has_header` when its first record names the columns."""

    delimiter: str
    columns: tuple[str, ...]
    encoding: str
    has_header: bool


class Record(NamedTuple):
    """One record; `offset` is the byte where it begins, `line` the number of its last line."""

    offset: int
    line: int
    cells: list[str]


def read_layout(path: Path, delimiter: str, encoding: str, columns: Sequence[str]) -> Layout:
    """Delimiter and columns of a file, from its first record.

    Args:
        path: the file.
        delimiter: a key of DELIMITERS, or "auto" for the one that occurs most often in the first line.
        encoding: of the text.
        columns: names, for a file without a header.

    Raises:
        UsageError: an empty file, an unknown encoding, or a header that cannot be one.
    """
    check_encoding(encoding)
    with LineReader(path) as lines:
        first = next((line for line in lines if line.strip()), None)
        if first is None:
            raise UsageError(f"{path}: the file is empty; it needs records, and a header line with the columns' names")
        text = _decode(first, lines, encoding)
    sign = DELIMITERS.get(delimiter) or max(DELIMITERS.values(), key=text.count)
    layout = Layout(sign, tuple(columns), encoding, not columns)
    cells = [cell.strip() for cell in next(_records(path, layout), Record(0, 0, [])).cells]
    if columns:
        while len(cells) > len(columns) and not cells[-1]:
            cells.pop()
        if len(cells) != len(columns):
            raise UsageError(f"{path}: the first line has {len(cells)} cells, --columns names {len(columns)} columns")
        return layout
    if all(_is_number(cell) for cell in cells if cell):
        raise UsageError(
            f"{path}: the first line holds numbers only, so there is no header; name the columns by --columns"
        )
    while cells and not cells[-1]:
        cells.pop()
    names = [cell or f"column{place}" for place, cell in enumerate(cells, start=1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{path}: two columns are called {twice[0]!r}; rename one")
    return Layout(sign, tuple(names), encoding, True)


def read_records(path: Path, layout: Layout) -> Iterator[Record]:
    """The records below the header, without empty lines; each as long as there are columns.

    Raises:
        UsageError: not text of this encoding, a quote that does not end, or a record with too many or too few cells.
    """
    records = _records(path, layout)
    if layout.has_header:
        next(records, None)
    wanted = len(layout.columns)
    for record in records:
        # Some writers end every line with a delimiter.
        while len(record.cells) > wanted and not record.cells[-1].strip():
            record.cells.pop()
        if len(record.cells) != wanted:
            raise UsageError(
                f"{path}, line {record.line}: {len(record.cells)} cells where there are {wanted} columns; mend the "
                "line, or name the right --delimiter"
            )
        yield record


def read_at(path: Path, layout: Layout, offsets: Sequence[int]) -> Iterator[list[str]]:
    """The cells of the records that begin at ascending offsets.

    Raises:
        UsageError: as `read_records`, or there is no such record.
    """
    with LineReader(path) as lines:
        for offset in offsets:
            lines.go_to(offset)
            try:
                yield next(_reader(lines, layout))
            except StopIteration:
                raise UsageError(f"{path}: ends before byte {offset}; it was changed while it was read") from None
            except csv.Error as error:
                raise UsageError(f"{lines.where()}: not readable as CSV: {error}") from None


def choose_columns(path: Path, wanted: Sequence[str], known: Sequence[str], option: str) -> None:
    """Check that all wanted columns are there.

    Raises:
        UsageError: one is not; lists the known ones.
    """
    for name in wanted:
        if name not in known:
            raise UsageError(
                f"{path}: {option}: no column {name!r}; there are: {', '.join(known)}.{suggestion(name, known)}"
            )


def number(cell: str, decimal_comma: bool = False) -> float:
    """What a cell stands for, NaN when the value is missing.

    Raises:
        ValueError: no finite number.
    """
    text = cell.strip()
    if text.lower() in MISSING:
        return math.nan
    if decimal_comma:
        if "." in text:
            raise ValueError(text)
        text = text.replace(",", ".")
    # Python reads 1_000 as a number; a file that holds it means something else.
    value = float(text) if "_" not in text else math.inf
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def check_encoding(encoding: str) -> None:
    """Refuse the name of an encoding that does not exist, or that has no line ends of one byte.

    Raises:
        UsageError: such a name.
    """
    try:
        single = "a\n".encode(encoding).removeprefix(codecs.BOM_UTF8) == b"a\n"
    except LookupError:
        raise UsageError(f"encoding {encoding!r} is not known; name one such as utf-8, latin-1 or cp1252") from None
    if not single:
        raise UsageError(f"encoding {encoding!r} is not supported; convert the file, such as by iconv -t UTF-8")


def _is_number(cell: str) -> bool:
    try:
        number(cell)
    except ValueError:
        return False
    return True


def _records(path: Path, layout: Layout) -> Iterator[Record]:
    with LineReader(path) as lines:
        reader = _reader(lines, layout)
        while True:
            offset = lines.offset
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise UsageError(f"{lines.where()}: not readable as CSV: {error}; is a quote left open?") from None
            if any(cell.strip() for cell in cells):
                yield Record(offset, lines.number or 0, cells)


def _reader(lines: LineReader, layout: Layout) -> Iterator[list[str]]:
    # A cell may go on over a line's end, which the lines come without.
    text = (_decode(line, lines, layout.encoding) + "\n" for line in lines)
    return csv.reader(text, delimiter=layout.delimiter, skipinitialspace=True, strict=True)


def _decode(line: bytes, lines: LineReader, encoding: str) -> str:
    try:
        return line.decode(encoding)
    except UnicodeDecodeError:
        raise UsageError(
            f"{lines.where()}: not {encoding} text; name its encoding, such as --encoding latin-1"
        ) from None
