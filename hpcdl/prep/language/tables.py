"""CSV and TSV files with a header: records by name of column, each with its place in the file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from hpcdl.errors import UsageError, suggestion
from hpcdl.prep.language.lines import MAX_LINE_BYTES, TextFile

Quotes = Literal["auto", "yes", "no"]


@dataclass(frozen=True)
class Record:
    """A row of a table: the line it begins in, its bytes in the stream, and the wanted cells; a missing one is empty."""

    number: int
    start: int
    end: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """How to read some columns of a file: `places` are their numbers, `width` is that of the header."""

    delimiter: str
    quoted: bool
    places: tuple[int, ...]
    width: int

    def records(self, file: TextFile) -> Iterator[Record]:
        """All rows below the header; blank lines are none.

        Raises:
            UsageError: unbalanced quotes, or more cells than the header has; names the line.
        """
        csv.field_size_limit(MAX_LINE_BYTES)
        number = end = 0

        def feed() -> Iterator[str]:
            nonlocal number, end
            for line in file.lines():
                number, end = line.number, line.end
                yield line.text + "\n"

        # The reader takes no more lines than a row has, so `end` is where the row ends.
        rows = csv.reader(feed(), strict=True, **self._dialect())
        first, start = 1, file.first
        while True:
            try:
                cells = next(rows, None)
            except csv.Error as error:
                raise UsageError(
                    f"{file.path}:{first}: not a row of a table: {error}; mend it, or choose --quotes yes or no"
                ) from None
            if cells is None:
                return
            if any(cell.strip() for cell in cells[self.width :]):
                raise UsageError(
                    f"{file.path}:{first}: {len(cells)} cells, the header has {self.width}; cells that hold the delimiter "
                    f"{self.delimiter!r} need quotes around them (and --quotes yes)"
                )
            if first > 1 and cells:
                yield Record(first, start, end, self._wanted(cells))
            first, start = number + 1, end

    def cells(self, text: str) -> tuple[str, ...]:
        """The wanted cells of the text of one row."""
        return self._wanted(next(csv.reader(io.StringIO(text, newline="\n"), **self._dialect()), []))

    def _wanted(self, cells: list[str]) -> tuple[str, ...]:
        return tuple(cells[place].strip() if place < len(cells) else "" for place in self.places)

    def _dialect(self) -> dict[str, Any]:
        return {"delimiter": self.delimiter, "quoting": csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE}


def open_table(file: TextFile, columns: tuple[str, ...], quotes: Quotes) -> Table:
    """Find the columns in the header, and with them the delimiter: tab, comma, semicolon or bar.

    Args:
        file: the table.
        columns: names of the wanted columns.
        quotes: whether quotes hold cells together; "auto" is yes except for tabs.

    Raises:
        UsageError: the file is empty, or a column is not there, or twice.
    """
    header = next(file.lines(), None)
    if header is None:
        raise UsageError(f"{file.path}: is empty; a table needs a header with the columns {', '.join(columns)}")
    best: list[str] = []
    for delimiter in "\t,;|":
        quoted = quotes == "yes" or (quotes == "auto" and delimiter != "\t")
        quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        names = [name.strip() for name in next(csv.reader([header.text], delimiter=delimiter, quoting=quoting), [])]
        for column in columns:
            if names.count(column) > 1:
                raise UsageError(
                    f"{file.path}:1: the column {column!r} is there {names.count(column)} times; rename one"
                )
        if all(column in names for column in columns):
            return Table(delimiter, quoted, tuple(map(names.index, columns)), len(names))
        best = max(best, names, key=len)
    missing = next(column for column in columns if column not in best)
    known = ", ".join(name[:40] for name in best[:20])
    raise UsageError(f"{file.path}:1: no column {missing!r}; the header has: {known}.{suggestion(missing, best)}")
