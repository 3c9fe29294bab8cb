"""Windows of time series that never cross a border: of a series, of a split in time, or of a gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from hpcdl.errors import UsageError
from hpcdl.prep.plan import SPLITS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

TRANSFORMS = ("none", "difference", "log-return")


def borders(
    time: Floats, val_fraction: float, test_fraction: float, val_start: float | None, test_start: float | None
) -> tuple[float, float]:
    """(time at which val begins, time at which test begins), for all series the same; infinity for a split not wanted.

    Shares are of the rows of all series together; a start that is given comes before a share.

    Raises:
        UsageError: val would begin after test.
    """
    if val_start is not None and test_start is not None and val_start >= test_start:
        raise UsageError("val_start is not before test_start; val lies before test")
    ordered = np.sort(time)
    num_test = round(len(time) * test_fraction)
    test = test_start if test_start is not None else _at(ordered, len(time) - num_test)
    before = ordered[ordered < test]
    # The shares are of all rows, also where the test split's start was given.
    val = val_start if val_start is not None else _at(before, len(before) - round(len(time) * val_fraction))
    return min(val, test), test


def split_of(time: Floats, val: float, test: float) -> npt.NDArray[np.int8]:
    """Index into SPLITS of each row."""
    return ((time >= val).astype(np.int8) + (time >= test)).astype(np.int8)


def pieces(series: Ints, split: npt.NDArray[np.int8], time: Floats, max_gap: float | None) -> Ints:
    """The first row of the piece that each row belongs to; a piece is of one series and one split and has no gap."""
    new = (np.diff(series) != 0) | (np.diff(split) != 0)
    if max_gap is not None:
        new |= np.diff(time) > max_gap
    starts = np.flatnonzero(np.r_[True, new])
    return np.repeat(starts, np.diff(np.r_[starts, len(series)]))


def filled_from(values: Floats, piece: Ints) -> Ints:
    """R × C: the row that each value is taken from when missing ones repeat the last one of their piece."""
    rows = np.arange(len(values))[:, None]
    last = np.maximum.accumulate(np.where(np.isnan(values), -1, rows), axis=0)
    return np.where(last >= piece[:, None], last, rows)


def transformed(values: Floats, transform: str, follows: Bools) -> Floats:
    """The series as it is stored, before scaling; NaN where there is no row before (`follows` is false)."""
    if transform == "none":
        return values
    levels = np.log(values) if transform == "log-return" else values
    change = np.full_like(values, np.nan)
    change[1:] = np.diff(levels, axis=0)
    change[~follows] = np.nan
    return change


@dataclass(frozen=True)
class Windows:
    """First rows of the windows of each split, how many were left out, and the rows of its longest piece."""

    starts: dict[str, Ints]
    num_missing: dict[str, int]
    num_buffer: dict[str, int]
    longest: dict[str, int]


def find_windows(
    series: Ints,
    piece: Ints,
    split: npt.NDArray[np.int8],
    missing_inputs: Bools,
    missing_targets: Bools,
    window: int,
    horizon: int,
    stride: int,
    skip: Literal[0, 1],
) -> Windows:
    """All windows of `window` rows and the `horizon` rows after them that lie in one piece and miss no value.

    Args:
        series: of each row; rows are ordered by series and time.
        piece: first row of each row's piece.
        split: of each row.
        missing_inputs: of each row, whether an input is missing.
        missing_targets: the same of targets.
        window: input rows.
        horizon: target rows.
        stride: rows from one window to the next of a piece.
        skip: rows at the start of a piece that no window holds (1 for differences).

    Returns:
        num_missing: windows left out for a missing value. num_buffer: windows that would have crossed a border.
    """
    length = window + horizon
    first = np.unique(piece)
    sizes = np.diff(np.r_[first, len(piece)])
    ends = np.searchsorted(series, series[first], side="right")
    found: dict[str, list[Ints]] = {name: [] for name in SPLITS}
    crossing, longest = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    for start, size, end in zip(first.tolist(), sizes.tolist(), ends.tolist(), strict=True):
        name = SPLITS[int(split[start])]
        # All windows that begin in this piece and end in its series; those that end in the piece are wanted.
        begins = range(start + skip, min(start + size, end - length + 1), stride)
        inside = range(start + skip, start + size - length + 1, stride)
        found[name].append(np.arange(inside.start, inside.stop, stride))
        crossing[name] += len(begins) - len(inside)
        longest[name] = max(longest[name], size - skip)
    holes = _sums(missing_inputs), _sums(missing_targets)
    starts, missing = {}, {}
    for name in SPLITS:
        begin = np.concatenate(found[name]) if found[name] else np.empty(0, np.int64)
        middle = begin + window
        bad = (holes[0][middle] > holes[0][begin]) | (holes[1][middle + horizon] > holes[1][middle])
        starts[name], missing[name] = begin[~bad], int(bad.sum())
    return Windows(starts, missing, crossing, longest)


def check_lengths(longest: int, window: int, horizon: int) -> None:
    """Refuse windows that no series can hold.

    Raises:
        UsageError: window and horizon are longer than the longest series.
    """
    if window + horizon > longest:
        raise UsageError(
            f"window {window} and horizon {horizon} need {window + horizon} rows in a row, the longest series has "
            f"{longest}; choose smaller ones"
        )


def _at(ordered: Floats, place: int) -> float:
    return float(ordered[place]) if place < len(ordered) else float("inf")


def _sums(flags: Bools) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(flags, dtype=np.int64)])
