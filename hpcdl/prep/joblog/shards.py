"""The fields of a shard of jobs, made of the lines of its jobs and of those before them."""

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
from hpcdl.prep.joblog.features import OUTCOME, SUBMIT, TIMING, Scale, Vocabulary, outcome_features, submit_features
from hpcdl.prep.joblog.history import History, Ints, Items, gathered, rows_needed, sequences
from hpcdl.prep.joblog.record import CATEGORIES, CPU_TIME, ENDED, MAX_RSS
from hpcdl.prep.joblog.sacct_values import clock_text
from hpcdl.prep.joblog.table import Jobs, Layout, read_jobs_at


@dataclass(frozen=True, eq=False)
class JobReader:
    """What is the same for all shards.

    Attributes:
        states: of each file when it was planned, see file_state.
        num_steps: length of a sequence, K.
        timing: whether the submission features say when a job was submitted.
        labels: of each state.
        final: of each state, whether a job in it has ended.
        submit, outcome, vocabulary: fitted on train.
    """

    paths: tuple[Path, ...]
    states: tuple[tuple[int, int], ...]
    layouts: tuple[Layout, ...]
    num_steps: int
    timing: bool
    labels: npt.NDArray[np.int64]
    final: npt.NDArray[np.bool_]
    submit: Scale
    outcome: Scale
    vocabulary: Vocabulary

    @property
    def submit_names(self) -> tuple[str, ...]:
        """Names of the submission features that are stored."""
        return tuple(name for name in SUBMIT if self.timing or name not in TIMING)

    def describe(self) -> dict[str, dict[str, Any]]:
        """The manifest's `fields`; a sequence of one job has no predecessors, so no outcomes."""
        steps = self.num_steps
        fields: dict[str, dict[str, Any]] = {
            "submit": {"dtype": "float32", "shape": [steps, len(self.submit_names)]},
            "category": {"dtype": "int64", "shape": [steps, len(CATEGORIES)]},
            "length": {"dtype": "int64", "shape": []},
            "end": {"dtype": "float32", "shape": [len(ENDED)], "fill": "nan"},
            "label": {"dtype": "int64", "shape": []},
            "time": {"dtype": "int64", "shape": []},
        }
        if steps > 1:
            fields["outcome"] = {"dtype": "float32", "shape": [steps - 1, len(OUTCOME)]}
            fields["mask"] = {"dtype": "uint8", "shape": [steps - 1]}
        return fields

    def fields(self, items: Items) -> dict[str, npt.NDArray[Any]]:
        """The fields of a shard.

        Raises:
            FailedError: a log has been changed or damaged since it was planned.
        """
        for place in np.unique(items.file).tolist():
            check_unchanged(self.paths[place], self.states[place])
        try:
            jobs = read_jobs_at(self.paths, self.layouts, items.file, items.offset)
        except UsageError as error:
            raise FailedError(str(error)) from None
        jobs.ended[:, [CPU_TIME, MAX_RSS]] = items.folded
        rows, real = sequences(items, self.num_steps)
        known_RF = submit_features(jobs, items.since, self.submit)[:, [SUBMIT.index(n) for n in self.submit_names]]
        fields: dict[str, npt.NDArray[Any]] = {
            "submit": gathered(known_RF, rows, real),
            "category": gathered(self.vocabulary.apply(jobs), rows, real),
            "length": items.length,
            "end": jobs.ended[items.samples].astype(np.float32),
            "label": self.labels[jobs.state[items.samples]],
            "time": jobs.submit[items.samples].astype(np.int64),
        }
        if self.num_steps > 1:
            before = rows[:, :-1]
            # A job's end is known to those submitted later on only; NaN compares as false.
            over = jobs.end[before] <= jobs.submit[items.samples][:, None]
            known = real[:, :-1] & over & self.final[jobs.state[before]]
            fields["outcome"] = gathered(outcome_features(jobs, self.outcome), before, known)
            fields["mask"] = known.astype(np.uint8)
        return fields

    def scaling_to_json(self) -> dict[str, Any]:
        """The manifest's `scaling`, by field and feature."""
        submit = self.submit.to_json(SUBMIT[: len(self.submit.mean)])
        return {
            "submit": {name: scale for name, scale in submit.items() if name in self.submit_names},
            "outcome": self.outcome.to_json(OUTCOME[-len(self.outcome.mean) :]),
        }


def make_tasks(
    jobs: Jobs,
    history: History,
    samples: Mapping[str, Ints],
    fields: Mapping[str, Mapping[str, Any]],
    num_steps: int,
    shard_mb: int,
) -> tuple[plans.ShardTask, ...]:
    """The shards of the samples of each split, each with the jobs that it needs."""
    sample_bytes = sum(
        int(np.prod(field["shape"], dtype=np.int64)) * np.dtype(field["dtype"]).itemsize for field in fields.values()
    )

    def where(_: str, rows: npt.NDArray[Any]) -> str:
        return f"jobs submitted from {clock_text(jobs.submit[rows[0]])} to {clock_text(jobs.submit[rows[-1]])}"

    tasks = []
    for task in plans.shard_tasks(samples, sample_bytes, shard_mb, where):
        needed, at, length = rows_needed(task.items, history, num_steps)
        items = Items(
            file=jobs.file[needed],
            offset=jobs.offset[needed],
            since=history.since[needed].astype(np.float32),
            folded=jobs.ended[needed][:, [CPU_TIME, MAX_RSS]].astype(np.float32),
            samples=at,
            length=length,
        )
        tasks.append(dataclasses.replace(task, items=items))
    return tuple(tasks)
