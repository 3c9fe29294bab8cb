"""Scale columns of series, fitted on the rows of the train split only; the numbers to undo it go to the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Scaling:
    """stored = (value - shift) / scale, column by column.

    Attributes:
        shift, scale: one row for all series, or one a series; × C.
        unseen: series without a train value in some column, which take what all series together give; empty with one row.
        constant: columns whose train values are all equal; their scale is 1.
    """

    shift: Floats
    scale: Floats
    unseen: tuple[int, ...]
    constant: tuple[int, ...]

    def apply(self, values: Floats, series: Ints) -> npt.NDArray[np.float32]:
        """R × C values of rows of these series, scaled."""
        row = series if len(self.shift) > 1 else np.zeros_like(series)
        return ((values - self.shift[row]) / self.scale[row]).astype(np.float32)

    def to_json(self, method: str, transform: str, columns: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
        """The manifest's `scaling`; per series when each has its own."""
        parts = [
            {name: {"shift": float(shift[c]), "scale": float(scale[c])} for c, name in enumerate(columns)}
            for shift, scale in zip(self.shift, self.scale, strict=True)
        ]
        fitted = {"columns": parts[0]} if len(parts) == 1 else {"series": dict(zip(names, parts, strict=True))}
        return {"method": method, "transform": transform, **fitted}


def fit(method: str, values: Floats, train: Bools, series: Ints, num_series: int) -> Scaling:
    """Fit on the train rows.

    Args:
        method: none, standard (mean 0, standard deviation 1) or minmax (0 to 1).
        values: R × C, NaN where missing.
        train: of each row, whether it is in the train split.
        series: of each row; rows are ordered by series.
        num_series: 1 to fit one scaling for all, else one a series.
    """
    columns = values.shape[1]
    shift, scale = np.zeros((num_series, columns)), np.ones((num_series, columns))
    if method == "none":
        return Scaling(shift[:1], scale[:1], (), ())
    whole, _ = _fit_one(method, values[train])
    unseen: set[int] = set()
    for number in range(num_series):
        one = slice(*np.searchsorted(series, [number, number + 1])) if num_series > 1 else slice(None)
        own, fitted = _fit_one(method, values[one][train[one]])
        shift[number], scale[number] = np.where(fitted, own, whole)
        if not fitted.all():
            unseen.add(number)
    constant = np.flatnonzero((scale <= 0).any(axis=0))
    scale[scale <= 0] = 1
    return Scaling(shift, scale, tuple(sorted(unseen)) if num_series > 1 else (), tuple(constant.tolist()))


def _fit_one(method: str, values: Floats) -> tuple[Floats, Bools]:
    """((shift, scale) as 2 × C, whether there was a value in each column)."""
    result = np.zeros((2, values.shape[1]))
    result[1] = 1
    fitted = np.zeros(values.shape[1], bool)
    for column, numbers in enumerate(values.T):
        present = numbers[~np.isnan(numbers)]
        if not len(present):
            continue
        fitted[column] = True
        if method == "standard":
            # The mean of equal values may differ from them in the last digit, and their deviation from 0.
            spread = float(np.std(present)) if np.ptp(present) > 0 else 0.0
            result[:, column] = np.mean(present), spread
        else:
            result[:, column] = np.min(present), np.ptp(present)
    return result, fitted
