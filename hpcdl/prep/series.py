"""Cut time series in CSV files into windows of past values and the values to predict, as HDF5 shards.

    hpcdl preprocess series --files prices.csv --time-column date --by symbol --window 24 --horizon 3 -o data/prices

Train, val and test follow one another in time, at the same moment for all series; no window crosses a border.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hpcdl.errors import UsageError
from hpcdl.prep import plan as plans
from hpcdl.prep.byte_lines import file_state, find_files
from hpcdl.prep.partition import check_fractions
from hpcdl.prep.statistics import ImageSums, image_statistics
from hpcdl.prep.timeseries.checks import check_splits, check_values, notes_on, start_time
from hpcdl.prep.timeseries.scaling import fit
from hpcdl.prep.timeseries.shards import WindowReader, make_tasks
from hpcdl.prep.timeseries.table import TableSettings, read_layouts, read_rows
from hpcdl.prep.timeseries.time import time_text
from hpcdl.prep.timeseries.windows import (
    borders,
    check_lengths,
    filled_from,
    find_windows,
    pieces,
    split_of,
    transformed,
)

# Part of every plan's digest: raise it when the same settings and sources come to mean other bytes.
_REVISION = 1


FILES = ("files",)
"""Settings that name files or globs: checked before a job is queued."""


@dataclass(frozen=True)
class Settings:
    """What `hpcdl preprocess series` accepts."""

    files: tuple[str, ...]
    """CSV files or globs, plain or gzip"""
    files_are: Literal["parts", "series"] = "parts"
    """Several files: parts of one table, or a series each, named as the file"""
    time_column: str | None = None
    """Column of the times (default: none, rows are in order and one step apart)"""
    time_format: str | None = None
    """How times are written: iso, number, or a format such as '%d.%m.%Y %H:%M' (default: found out)"""
    by: str | None = None
    """Column that names the series a row belongs to, when a table holds several"""
    inputs: tuple[str, ...] = ()
    """Columns a window holds (default: all columns of numbers)"""
    targets: tuple[str, ...] = ()
    """Columns to predict (default: the inputs)"""
    window: int = 32
    """Rows of a window"""
    horizon: int = 1
    """Rows to predict after a window"""
    stride: int = 1
    """Rows from one window to the next"""
    transform: Literal["none", "difference", "log-return"] = "none"
    """Store each value's change since the row before, or the logarithm of its ratio to it"""
    scaling: Literal["none", "standard", "minmax"] = "standard"
    """Scale columns by the train split: mean 0 and standard deviation 1, or 0 to 1"""
    scale_per_series: bool = False
    """Scale each series by its own train values"""
    missing: Literal["refuse", "forward", "drop"] = "refuse"
    """Missing values: refuse, repeat the last one, or drop the windows that hold one"""
    duplicates: Literal["refuse", "first", "last"] = "refuse"
    """Rows of one series at one time: refuse, or keep the first or last"""
    max_gap: float | None = None
    """No window goes over a longer time without a row: seconds for dates, else the time column's unit"""
    val_fraction: float = 0.1
    """Share of all rows that go to val, those before test; unused with val_start"""
    test_fraction: float = 0.2
    """Share of all rows that go to test, the latest; unused with test_start"""
    val_start: str | None = None
    """Time at which val begins"""
    test_start: str | None = None
    """Time at which test begins"""
    delimiter: Literal["auto", "comma", "semicolon", "tab", "pipe"] = "auto"
    """What is between cells"""
    decimal_comma: bool = False
    """Numbers are written as 1,5"""
    encoding: str = "utf-8"
    """Of the files"""
    columns: tuple[str, ...] = ()
    """Names of the columns, for files without a header"""
    shard_mb: int = 32
    """Size of a shard, at most, in megabytes"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan(plans.Plan):
    """A plan with what the workers read by; `items` of its tasks are Items."""

    reader: WindowReader
    names: tuple[str, ...]
    form: str
    starts: Mapping[str, float]
    notes: tuple[str, ...]
    options: Settings


def plan(settings: Settings) -> Plan:
    """Read all rows once, choose the borders in time, fit the scaling on train, and find the windows.

    Raises:
        UsageError: a setting or an input file is not usable; says which and what to do.
    """
    _check(settings)
    paths = find_files(settings.files, "--files")
    states = tuple(file_state(path) for path in paths)
    sources = plans.describe_sources([("table", path) for path in paths])
    table = TableSettings(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(TableSettings)})
    targets = settings.targets or settings.inputs
    wanted = {
        "--time-column": [settings.time_column] if settings.time_column else [],
        "--by": [settings.by] if settings.by else [],
        "--inputs": settings.inputs,
        "--targets": settings.targets,
    }
    layouts = read_layouts(paths, table, wanted)
    # Without --inputs all columns of numbers are, whatever the targets are.
    chosen = tuple(dict.fromkeys([*settings.inputs, *targets])) if settings.inputs else ()
    rows = read_rows(paths, layouts, table, chosen)
    inputs, targets = settings.inputs or rows.columns, targets or rows.columns
    for name in targets:
        if name not in rows.columns:
            raise UsageError(
                f"{paths[0]}: target {name!r} is no column of numbers; these are: {', '.join(rows.columns)}"
            )
    check_lengths(int(np.bincount(rows.series).max()), settings.window, settings.horizon)

    given = {
        name: None if text is None else start_time(name, text, rows)
        for name, text in (("val_start", settings.val_start), ("test_start", settings.test_start))
    }
    val, test = borders(
        rows.time, settings.val_fraction, settings.test_fraction, given["val_start"], given["test_start"]
    )
    split = split_of(rows.time, val, test)
    piece = pieces(rows.series, split, rows.time, settings.max_gap)
    check_values(rows, paths, settings.missing, settings.transform)
    source = filled_from(rows.values, piece) if settings.missing == "forward" else None
    values = rows.values if source is None else np.take_along_axis(rows.values, source, axis=0)
    values = transformed(values, settings.transform, piece != np.arange(len(piece)))
    scaling = fit(
        settings.scaling, values, split == 0, rows.series, len(rows.names) if settings.scale_per_series else 1
    )
    input_at, target_at = ([rows.columns.index(name) for name in names] for names in (inputs, targets))
    holes = np.isnan(values)
    skip: Literal[0, 1] = 0 if settings.transform == "none" else 1
    windows = find_windows(
        rows.series, piece, split, np.asarray(holes[:, input_at].any(axis=1)), np.asarray(holes[:, target_at].any(axis=1)),
        settings.window, settings.horizon, settings.stride, skip,
    )  # fmt: skip
    wanted_splits = {
        "train": True,
        "val": settings.val_fraction > 0 or settings.val_start is not None,
        "test": settings.test_fraction > 0 or settings.test_start is not None,
    }
    check_splits(windows, wanted_splits, settings.window, settings.horizon)

    whole = bool((rows.time == np.round(rows.time)).all() and np.abs(rows.time).max() < 2**53)
    fields: dict[str, dict[str, Any]] = {
        "inputs": {"dtype": "float32", "shape": [settings.window, len(inputs)]},
        "targets": {"dtype": "float32", "shape": [settings.horizon, len(targets)]},
        "time": {"dtype": "int64" if whole else "float64", "shape": []},
        "series": {"dtype": "int64", "shape": []},
    }
    if settings.transform != "none":
        fields["base"] = {"dtype": "float64", "shape": [len(targets)]}
    tasks = make_tasks(rows, settings.window, settings.horizon, skip, settings.shard_mb, source, windows, fields)
    starts = {name: start for name, start in (("val", val), ("test", test)) if len(windows.starts[name])}
    decisive = {key: value for key, value in dataclasses.asdict(settings).items() if key != "files"}
    content = [rows.names, rows.columns, inputs, targets, starts, [source.sha256 for source in sources]]
    windows_digest = [
        [task.name, hashlib.sha256(task.items.starts.tobytes() + task.items.time.tobytes()).hexdigest()]
        for task in tasks
    ]
    return Plan(
        digest=plans.plan_digest("series", _REVISION, decisive, content, windows_digest),
        settings=dataclasses.asdict(settings),
        sources=sources,
        fields=fields,
        shards=tasks,
        counts={
            name: {"num_buffer": windows.num_buffer[name], "num_missing": windows.num_missing[name]}
            for name in plans.SPLITS
        },
        reader=WindowReader(
            paths=paths,
            states=states,
            layouts=tuple(layouts),
            columns=rows.columns,
            inputs=inputs,
            targets=targets,
            decimal_comma=settings.decimal_comma,
            window=settings.window,
            horizon=settings.horizon,
            transform=settings.transform,
            scaling=scaling,
        ),
        names=rows.names,
        form=rows.form,
        starts=starts,
        notes=tuple(notes_on(rows, split, windows, scaling, settings.duplicates)),
        options=settings,
    )


def make_shard(plan: Plan, task: plans.ShardTask) -> plans.ShardContent:
    """The task's windows, scaled, and the sums for the statistics.

    Raises:
        FailedError: a file has been changed or damaged since it was planned.
    """
    fields = plan.reader.fields(task.items)
    sums: dict[str, Any] = {}
    for name in ("inputs", "targets"):
        columns = fields[name].shape[2]
        part = ImageSums(columns)
        part.add(fields[name].reshape(-1, columns).T)
        sums |= part.attributes(name)
    return plans.ShardContent(fields, sums)


def manifest_entries(plan: Plan, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Columns, series, borders and scaling, and statistics of the train split; see docs/inputs/series.md."""
    train = [attributes[task.name] for task in plan.shards if task.split == "train"]
    settings = plan.options
    units = {"number": "number", "row": "row"}
    return {
        "columns": {"inputs": list(plan.reader.inputs), "targets": list(plan.reader.targets)},
        "series": [{"index": index, "name": name} for index, name in enumerate(plan.names)],
        "window": settings.window,
        "horizon": settings.horizon,
        "time": {"unit": units.get(plan.form, "seconds since 1970-01-01 UTC"), "starts": dict(plan.starts)},
        "scaling": plan.reader.scaling.to_json(settings.scaling, settings.transform, plan.reader.columns, plan.names),
        "statistics": {name: image_statistics(train, name) for name in ("inputs", "targets")},
    }


def summary(plan: Plan, entries: Mapping[str, Any]) -> list[str]:
    """Series, columns, borders, and what was sorted, filled or left out."""
    settings = plan.options
    lines = [
        f"inputs: {settings.window} rows × {', '.join(plan.reader.inputs)}; targets: {settings.horizon} rows × "
        f"{', '.join(plan.reader.targets)}; transform {settings.transform}, scaling {settings.scaling}"
    ]
    for name, start in entries["time"]["starts"].items():
        lines.append(f"{name} begins at {time_text(start, plan.form)}")
    return [*lines, *plan.notes]


def _check(settings: Settings) -> None:
    for name in ("window", "horizon", "stride", "shard_mb"):
        if getattr(settings, name) < 1:
            raise UsageError(f"{name} is {getattr(settings, name)}; it must be at least 1")
    if settings.max_gap is not None and not settings.max_gap > 0:
        raise UsageError(f"max_gap is {settings.max_gap}; it must be more than 0")
    if settings.by is not None and settings.by == settings.time_column:
        raise UsageError(f"by and time_column are both {settings.by!r}; they are two columns")
    for name in ("inputs", "targets", "columns"):
        values = getattr(settings, name)
        if len(set(values)) < len(values):
            raise UsageError(f"{name} names a column twice: {', '.join(values)}")
    if settings.time_format is not None and settings.time_column is None:
        raise UsageError("time_format is given without time_column; name the column of the times")
    check_fractions(settings.val_fraction, settings.test_fraction)
