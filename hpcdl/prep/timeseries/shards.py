"""Which rows each shard of windows needs, and the windows' fields made of these rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep import plan as plans
from hpcdl.prep.byte_lines import check_unchanged
from hpcdl.prep.timeseries.csv import Layout
from hpcdl.prep.timeseries.scaling import Scaling
from hpcdl.prep.timeseries.table import SeriesRows, read_values
from hpcdl.prep.timeseries.time import time_text
from hpcdl.prep.timeseries.windows import Windows, transformed


@dataclass(frozen=True, eq=False)
class Items:
    """What a worker needs for one shard.

    Attributes:
        file, offset, series: of each row to read, in order of series and time.
        source: R × C, the row of these that a value is taken from when missing ones are filled; None without.
        starts: the first of these rows of each window.
        time: of each window's first target.
    """

    file: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    series: npt.NDArray[np.int64]
    source: npt.NDArray[np.int64] | None
    starts: npt.NDArray[np.int64]
    time: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, eq=False)
class WindowReader:
    """What is the same for all shards: the files, their columns, and how a value is stored."""

    paths: tuple[Path, ...]
    states: tuple[tuple[int, int], ...]
    layouts: tuple[Layout, ...]
    columns: tuple[str, ...]
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    decimal_comma: bool
    window: int
    horizon: int
    transform: str
    scaling: Scaling

    def fields(self, items: Items) -> dict[str, npt.NDArray[Any]]:
        """The fields of a shard.

        Raises:
            FailedError: a file has been changed or damaged since.
        """
        for place in np.unique(items.file).tolist():
            check_unchanged(self.paths[place], self.states[place])
        try:
            raw = read_values(self.paths, self.layouts, self.columns, self.decimal_comma, items.file, items.offset)
        except UsageError as error:
            raise FailedError(str(error)) from None
        if items.source is not None:
            raw = np.take_along_axis(raw, items.source, axis=0)
        # Rows of a window follow one another; what the change at its first row is made of lies right before it.
        follows = np.ones(len(raw), bool)
        follows[:1] = False
        scaled = self.scaling.apply(transformed(raw, self.transform, follows), items.series)
        input_at, target_at = ([self.columns.index(name) for name in names] for names in (self.inputs, self.targets))
        first_target = items.starts + self.window
        fields: dict[str, npt.NDArray[Any]] = {
            "inputs": scaled[:, input_at][items.starts[:, None] + np.arange(self.window)],
            "targets": scaled[:, target_at][first_target[:, None] + np.arange(self.horizon)],
            "time": items.time,
            "series": items.series[items.starts],
        }
        if self.transform != "none":
            fields["base"] = raw[:, target_at][first_target - 1]
        return fields


def make_tasks(
    rows: SeriesRows,
    window: int,
    horizon: int,
    skip: int,
    shard_mb: int,
    source: npt.NDArray[np.int64] | None,
    windows: Windows,
    fields: Mapping[str, Mapping[str, Any]],
) -> tuple[plans.ShardTask, ...]:
    """The shards, each with the rows that it needs: those of its windows, the `skip` rows before, and what fills holes."""
    sample_bytes = sum(
        int(np.prod(field["shape"], dtype=np.int64)) * np.dtype(field["dtype"]).itemsize for field in fields.values()
    )

    def where(_: str, starts: npt.NDArray[Any]) -> str:
        ends = (
            time_text(float(rows.time[starts].min()), rows.form),
            time_text(float(rows.time[starts].max()), rows.form),
        )
        return f"windows that begin from {ends[0]} to {ends[1]}"

    tasks = plans.shard_tasks(windows.starts, sample_bytes, shard_mb, where)
    time_dtype = fields["time"]["dtype"]
    done = []
    for task in tasks:
        length = window + horizon + skip
        flags = np.zeros(len(rows.time) + 1, np.int64)
        np.add.at(flags, task.items - skip, 1)
        np.add.at(flags, task.items - skip + length, -1)
        needed = np.flatnonzero(np.cumsum(flags[:-1]))
        filling = None
        if source is not None and (source[needed] != needed[:, None]).any():
            needed = np.union1d(needed, source[needed])
            filling = np.searchsorted(
                needed, np.where(np.isin(source[needed], needed), source[needed], needed[:, None])
            )
        items = Items(
            file=rows.file[needed],
            offset=rows.offset[needed],
            series=rows.series[needed],
            source=filling,
            starts=np.searchsorted(needed, task.items),
            time=rows.time[task.items + window].astype(time_dtype),
        )
        done.append(dataclasses.replace(task, items=items))
    return tuple(done)
