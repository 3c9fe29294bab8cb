"""Files of text as options name them: paths, globs, CLASS=FILE, tables with columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcdl.errors import UsageError
from hpcdl.prep.byte_lines import find_files
from hpcdl.prep.language.lines import text_file
from hpcdl.prep.language.sentences import Input
from hpcdl.prep.language.tables import Quotes, open_table


@dataclass(frozen=True)
class Reading:
    """How text files are read: `columns` are those of text and label in tables, None for files of lines."""

    encoding: str
    columns: tuple[str, str] | None = None
    quotes: Quotes = "auto"


def open_inputs(
    specs: Sequence[str], option: str, reading: Reading, labelled: bool = False, side: int = 0
) -> Iterator[Input]:
    """The files that the values of an option stand for, in order; those of a glob by name.

    Args:
        specs: paths or globs; for `labelled` files of lines CLASS=FILE.
        option: what they were given by, such as "--corpus".
        reading: how the files are read.
        labelled: whether each line needs a label.
        side: 1 for the targets of pairs.

    Raises:
        UsageError: nothing there, or not readable as text or table.
    """
    for spec in specs:
        label, pattern = _class_of(spec) if labelled and reading.columns is None else (None, spec)
        for path in find_files([pattern], option):
            file = text_file(path, reading.encoding)
            table = None if reading.columns is None else open_table(file, reading.columns, reading.quotes)
            yield Input(file, table, label, side)


def _class_of(spec: str) -> tuple[str, str]:
    """(class, path) of CLASS=FILE; of a mere file, its name without .txt and .gz is the class."""
    name, sign, path = spec.partition("=")
    if sign and "/" not in name and not Path(spec).exists():
        if not name.strip() or not path:
            raise UsageError(f"sentences {spec!r}: expected CLASS=FILE")
        return name.strip(), path
    stem = Path(spec).name
    for suffix in (".gz", ".bz2", ".xz", ".txt"):
        stem = stem.removesuffix(suffix)
    return stem, spec
