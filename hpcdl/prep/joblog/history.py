"""Jobs and those of the same user before them: what each sample, and so each shard, needs of a log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class History:
    """Of each job, in the order of submission.

    Attributes:
        order: all jobs by user, and those of a user by submission.
        place: where a job is in `order`.
        rank: how many jobs of its user came before it; 0 for jobs of an unknown user.
        since: seconds since the user's submission before, NaN for the first.
    """

    order: Ints
    place: Ints
    rank: Ints
    since: Floats


def find_history(owner: Ints, submit: Floats) -> History:
    """The history of jobs that are ordered by submission; owner 0 is unknown."""
    order = np.argsort(owner, kind="stable").astype(np.int64)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    starts = np.flatnonzero(np.r_[True, np.diff(owner[order]) != 0])
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    rank[owner == 0] = 0
    since = np.full(len(order), np.nan)
    follows = np.flatnonzero(rank > 0)
    since[follows] = submit[follows] - submit[order[place[follows] - 1]]
    return History(order, place, rank, since)


@dataclass(frozen=True, eq=False)
class Items:
    """The jobs that one shard needs: R rows, those of a user side by side by submission, and N samples among them.

    Attributes:
        file, offset: R; where the job's line begins.
        since: R; see History.
        folded: R × 2; CPU time and memory, as the job's steps may have told them.
        samples: N; row of each sample.
        length: N; jobs of its sequence, itself among them.
    """

    file: Ints
    offset: Ints
    since: npt.NDArray[np.float32]
    folded: npt.NDArray[np.float32]
    samples: Ints
    length: Ints

    def __len__(self) -> int:
        return len(self.samples)


def rows_needed(jobs: Ints, history: History, num_steps: int) -> tuple[Ints, Ints, Ints]:
    """(jobs that sequences of `num_steps` ending in these jobs are made of, row of each sample in them, lengths)."""
    length = np.minimum(history.rank[jobs] + 1, num_steps)
    flags = np.zeros(len(history.order) + 1, np.int64)
    np.add.at(flags, history.place[jobs] - length + 1, 1)
    np.add.at(flags, history.place[jobs] + 1, -1)
    places = np.flatnonzero(np.cumsum(flags[:-1]))
    return history.order[places], np.searchsorted(places, history.place[jobs]), length


def sequences(items: Items, num_steps: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """(rows of each sample's sequence, N × K, the sample itself last; whether a step is real): earlier ones are padding."""
    steps = np.arange(num_steps)
    rows = items.samples[:, None] - steps[::-1]
    real = steps >= num_steps - items.length[:, None]
    return np.where(real, rows, items.samples[:, None]), real


def gathered(rows_RF: npt.NDArray[Any], rows: Ints, real: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """N × K × F: values of the rows of each sequence, 0 where a step is padding."""
    values = rows_RF[rows]
    values[~real] = 0
    return values
