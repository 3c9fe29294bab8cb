"""What plan() tells of time series: where the borders lie, values that cannot be used, splits without windows, notes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpcdl.errors import UsageError
from hpcdl.prep.plan import SPLITS
from hpcdl.prep.timeseries.scaling import Scaling
from hpcdl.prep.timeseries.table import SeriesRows
from hpcdl.prep.timeseries.time import parse_time
from hpcdl.prep.timeseries.windows import Windows


def start_time(option: str, text: str, rows: SeriesRows) -> float:
    """The time of a border, written as the column is or as an ISO date.

    Raises:
        UsageError: it is written otherwise.
    """
    forms = ("number",) if rows.form in ("number", "row") else (rows.form, "iso", "iso with offset")
    for form in forms:
        try:
            return parse_time(text, form)
        except (ValueError, OverflowError):
            continue
    raise UsageError(f"{option} {text!r} is no time of the form {' or '.join(forms)}")


def check_values(rows: SeriesRows, paths: tuple[Path, ...], missing: str, transform: str) -> None:
    """Refuse missing values where they are not allowed, and values without a logarithm.

    Raises:
        UsageError: names the first such value.
    """
    problem = None
    holes = np.isnan(rows.values)
    if missing == "refuse" and holes.any():
        found = holes
        problem = (
            "is missing ({count} such values); choose --missing forward or drop, or name other columns by --inputs"
        )
    elif transform == "log-return" and (found := rows.values <= 0).any():
        problem = "is not above 0 ({count} such values), so it has no log-return; choose --transform difference"
    if problem is not None:
        row, column = np.argwhere(found)[0]
        raise UsageError(
            f"{paths[rows.file[row]]}, line {rows.line[row]}: the value of {rows.columns[column]!r} "
            + problem.format(count=int(found.sum()))
        )


def check_splits(windows: Windows, wanted: Mapping[str, bool], window: int, horizon: int) -> None:
    """Refuse a split that is wanted and has no window.

    Raises:
        UsageError: says what became of the windows that might have been.
    """
    for name in SPLITS:
        if wanted[name] and not len(windows.starts[name]):
            raise UsageError(
                f"the {name} split gets no window: each needs {window} + {horizon} rows in a row, of one series and "
                f"without a gap; this split has {windows.longest[name]} at most ({windows.num_missing[name]} windows were "
                "left out for a missing value); choose a smaller window or a larger share, or 0 to leave the split out"
            )


def notes_on(
    rows: SeriesRows, split: npt.NDArray[np.int8], windows: Windows, scaling: Scaling, duplicates: str
) -> list[str]:
    """What the user should know of the rows."""
    notes = [f"{len(rows.time)} rows of {len(rows.names)} series"]
    steps = np.diff(rows.time)[np.diff(rows.series) == 0]
    if rows.form != "row" and len(steps):
        unit = "" if rows.form == "number" else " s"
        notes[0] += f", typically {np.median(steps):.10g}{unit} apart; the longest gap is {steps.max():.10g}{unit}"
    if rows.form == "row":
        notes.append("no --time-column: rows were taken in the order of the files, one step apart")
    if rows.num_unsorted:
        notes.append(f"{rows.num_unsorted} rows came after a later one of their series; all were sorted by time")
    if rows.num_duplicates:
        notes.append(f"{rows.num_duplicates} rows of a time that another row has were left out ({duplicates} kept)")
    if missing := sum(windows.num_missing.values()):
        notes.append(f"{missing} windows were left out as a value is missing")
    silent = [name for number, name in enumerate(rows.names) if not (split[rows.series == number] == 0).any()]
    if silent:
        notes.append(f"{len(silent)} series have no row in train: {', '.join(silent[:10])}{' …' * (len(silent) > 10)}")
    if scaling.constant:
        names = ", ".join(rows.columns[column] for column in scaling.constant)
        notes.append(f"warning: constant in train, so only shifted: {names}")
    if scaling.unseen:
        names = ", ".join(rows.names[number] for number in scaling.unseen[:10])
        notes.append(f"warning: without train values of their own, scaled as all series together: {names}")
    return notes
