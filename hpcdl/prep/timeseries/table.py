"""The rows of time series in CSV files: where each begins, its time, its series and its values, in order of series and time."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from hpcdl.errors import UsageError
from hpcdl.prep.timeseries.csv import Layout, choose_columns, number, read_at, read_layout, read_records
from hpcdl.prep.timeseries.time import TimeColumn, time_text

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# A column is taken for text when its first cells are texts and no numbers; it then costs nothing any more.
_PROBE_ROWS = 100


@dataclass(frozen=True)
class TableSettings:
    """How files are read: as the settings of the kind, by the same names."""

    delimiter: str
    encoding: str
    columns: tuple[str, ...]
    decimal_comma: bool
    time_column: str | None
    time_format: str | None
    by: str | None
    files_are: Literal["parts", "series"]
    duplicates: Literal["refuse", "first", "last"]


@dataclass(frozen=True, eq=False)
class SeriesRows:
    """All rows, ordered by series and time.

    Attributes:
        values: R × C float64, NaN where missing; the columns are `columns`.
        time: R; seconds since 1970, a number, or the row's place in its series, as `form` says.
        series: R, index into `names`.
        file, offset, line: R each; where the row lies.
        form: of the time column, see TimeColumn; "row" without one.
        num_duplicates: rows left out as another one had the same series and time.
        num_unsorted: rows that came after a later time of their series.
    """

    columns: tuple[str, ...]
    values: Floats
    time: Floats
    series: Ints
    names: tuple[str, ...]
    file: Ints
    offset: Ints
    line: Ints
    form: str
    num_duplicates: int
    num_unsorted: int


class _Column:
    """The numbers of one column, and its first cell that is none."""

    def __init__(self) -> None:
        self.values = array("d")
        self.num_good = 0
        self.bad: tuple[str, str] | None = None

    def add(self, cell: str, decimal_comma: bool, reader: str, line: int) -> None:
        try:
            value = number(cell, decimal_comma)
        except ValueError:
            value = np.nan
            self.bad = self.bad or (f"{reader}, line {line}", cell.strip()[:60])
        self.num_good += value == value
        self.values.append(value)


def read_layouts(paths: Sequence[Path], settings: TableSettings, wanted: Mapping[str, Sequence[str]]) -> list[Layout]:
    """The layout of each file; all must have the same columns, and those that `wanted` names by option.

    Raises:
        UsageError: they do not.
    """
    layouts = [read_layout(path, settings.delimiter, settings.encoding, settings.columns) for path in paths]
    for path, layout in zip(paths, layouts, strict=True):
        if set(layout.columns) != set(layouts[0].columns):
            odd = sorted(set(layout.columns) ^ set(layouts[0].columns))
            raise UsageError(f"{path}: its columns differ from those of {paths[0]}: {', '.join(odd)}; give like files")
        for option, names in wanted.items():
            choose_columns(path, names, layout.columns, option)
    return layouts


def read_rows(
    paths: Sequence[Path], layouts: Sequence[Layout], settings: TableSettings, columns: Sequence[str]
) -> SeriesRows:
    """All rows of all files in order.

    Args:
        paths: the files.
        layouts: of each file.
        settings: how they are read.
        columns: the value columns; none means all that hold numbers.

    Raises:
        UsageError: a damaged file, a cell that is no number, times that are missing, double, or not of one form.
    """
    keys = [name for name in (settings.time_column, settings.by) if name]
    found = {name: _Column() for name in (columns or layouts[0].columns) if name not in keys}
    times = TimeColumn(settings.time_format) if settings.time_column else None
    series, file, offset, lines = array("q"), array("q"), array("q"), array("q")
    names: dict[str, int] = {}
    stems = _stems(paths) if settings.files_are == "series" else [""] * len(paths)
    for place, (path, layout) in enumerate(zip(paths, layouts, strict=True)):
        at = {name: layout.columns.index(name) for name in layout.columns}
        active = [(column, at[name]) for name, column in found.items()]
        for record in read_records(path, layout):
            line = record.line or 0
            if times is not None:
                times.add(record.cells[at[settings.time_column or ""]], f"{path}, line {line}")
            name = "/".join(filter(None, (stems[place], _name(settings, record.cells, at, path, line))))
            series.append(names.setdefault(name, len(names)))
            file.append(place)
            offset.append(record.offset)
            lines.append(line)
            for column, index in active:
                column.add(record.cells[index], settings.decimal_comma, str(path), line)
            if len(series) == _PROBE_ROWS and not columns:
                found = {name: column for name, column in found.items() if column.num_good or not column.bad}
                active = [(column, at[name]) for name, column in found.items()]
    if not len(series):
        raise UsageError(f"{paths[0]}: no record below the header; the series need rows")
    kept = _numeric(found, bool(columns), layouts[0].columns, keys, paths[0])
    values = np.stack([np.frombuffer(kept[name].values, np.float64) for name in kept], axis=1)
    numbers: Ints = np.frombuffer(series, np.int64)
    form, time = times.finish() if times is not None else ("row", _counted(numbers))
    places = [np.frombuffer(part, np.int64) for part in (file, offset, lines)]
    rows = _Rows(values, time, numbers, places[0], places[1], places[2])
    return _ordered(tuple(kept), form, list(names), rows, paths, settings.duplicates)


def read_values(
    paths: Sequence[Path],
    layouts: Sequence[Layout],
    columns: Sequence[str],
    decimal_comma: bool,
    file: Ints,
    offset: Ints,
) -> Floats:
    """The values of some rows, R × C, in the order of `file` and `offset`.

    Raises:
        UsageError: a file is not as it was when these rows were found.
    """
    values = np.empty((len(file), len(columns)))
    for place in np.unique(file).tolist():
        layout, path = layouts[place], paths[place]
        at = [layout.columns.index(name) for name in columns]
        rows = np.flatnonzero(file == place)
        rows = rows[np.argsort(offset[rows], kind="stable")]
        for row, cells in zip(rows.tolist(), read_at(path, layout, offset[rows].tolist()), strict=True):
            try:
                values[row] = [number(cells[index], decimal_comma) for index in at]
            except (ValueError, IndexError):
                raise UsageError(
                    f"{path}: its rows have changed since it was planned; run the same command again"
                ) from None
    return values


def _stems(paths: Sequence[Path]) -> list[str]:
    stems = [path.name.removesuffix(".gz").removesuffix(".csv") for path in paths]
    for stem, path in zip(stems, paths, strict=True):
        if stems.count(stem) > 1:
            raise UsageError(f"{path}: two files are named {stem!r}, and each file is a series here; rename one")
    return stems


def _name(settings: TableSettings, cells: Sequence[str], at: Mapping[str, int], path: Path, line: int) -> str:
    if settings.by is None:
        return ""
    name = cells[at[settings.by]].strip()
    if not name:
        raise UsageError(f"{path}, line {line}: column {settings.by!r} is empty; each row must name its series")
    return name


def _counted(series: Ints) -> Floats:
    """The place of each row in its series."""
    order = np.argsort(series, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(series[order]) != 0])
    sizes = np.diff(np.r_[starts, len(series)])
    place = np.empty(len(series))
    place[order] = np.arange(len(series)) - np.repeat(starts, sizes)
    return place


def _numeric(
    found: Mapping[str, _Column], chosen: bool, all_columns: Sequence[str], keys: Sequence[str], path: Path
) -> dict[str, _Column]:
    """The columns to use."""
    kept = {}
    for name, column in found.items():
        mostly = column.num_good > len(column.values) / 2
        if column.bad is not None and (chosen or mostly):
            where, cell = column.bad
            raise UsageError(
                f"{where}: column {name!r}: {cell!r} is no number; mend it, empty it if the value is missing, or leave "
                "the column out by naming others with --inputs"
            )
        if column.num_good == 0 and chosen:
            raise UsageError(f"{path}: column {name!r} holds no value at all; name other columns")
        if column.bad is None and column.num_good:
            kept[name] = column
    others = [name for name in all_columns if name not in kept and name not in keys]
    if not kept:
        raise UsageError(f"{path}: no column of numbers; there are: {', '.join(all_columns)}")
    if others and not chosen:
        print(f"hpcdl: columns left out, as they hold no numbers: {', '.join(others)}", file=sys.stderr)
    return kept


class _Rows(NamedTuple):
    """Rows as they were read: values N × columns; time, number of the series, and where each row lies, N."""

    values: Floats
    time: Floats
    number: Ints
    file: Ints
    offset: Ints
    line: Ints


def _ordered(
    columns: tuple[str, ...],
    form: str,
    names: list[str],
    rows: _Rows,
    paths: Sequence[Path],
    duplicates: str,
) -> SeriesRows:
    """Series by name, rows by time; of rows of one time the chosen one."""
    rank = np.empty(len(names), np.int64)
    by_name = sorted(range(len(names)), key=names.__getitem__)
    rank[by_name] = np.arange(len(names))
    values, time, number, file, offset, line = rows
    series = rank[number]
    in_file_order = np.argsort(series, kind="stable")
    late = (np.diff(time[in_file_order]) < 0) & (np.diff(series[in_file_order]) == 0)
    order = np.lexsort((time, series))
    same = (np.diff(time[order]) == 0) & (np.diff(series[order]) == 0)
    if same.any() and duplicates == "refuse":
        first, second = order[np.flatnonzero(same)[0] + np.arange(2)]
        of = f" of series {names[int(number[first])]!r}" if len(names) > 1 else ""
        raise UsageError(
            f"{paths[int(file[second])]}, line {line[second]}: time {time_text(float(time[second]), form)}{of} is there "
            f"already, in line {line[first]} of {paths[int(file[first])].name} ({int(same.sum())} such rows); name the "
            "column that tells series apart by --by, or choose --duplicates first or last"
        )
    keep = np.r_[True, ~same] if duplicates == "first" else np.r_[~same, True]
    order = order[keep]
    return SeriesRows(
        columns=columns,
        values=values[order],
        time=time[order],
        series=series[order],
        names=tuple(names[place] for place in by_name),
        file=file[order],
        offset=offset[order],
        line=line[order],
        form=form,
        num_duplicates=int(same.sum()),
        num_unsorted=int(late.sum()),
    )
