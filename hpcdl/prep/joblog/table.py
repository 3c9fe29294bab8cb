"""Job logs as columns of numbers: all jobs of some files, without doubles, or those that begin at given bytes."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcdl.errors import UsageError
from hpcdl.prep.byte_lines import LineReader
from hpcdl.prep.joblog.record import CATEGORIES, CPU_TIME, ENDED, FINAL, MAX_RSS, REQUEST, STATES, Job
from hpcdl.prep.joblog.sacct import SacctLayout
from hpcdl.prep.joblog.swf import SwfLayout

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Layout = SacctLayout | SwfLayout

_MAX_WARNINGS = 10
_IS_FINAL = np.array([state in FINAL for state in STATES])


class Names:
    """Small numbers for names, in order of appearance; the empty name is 0."""

    def __init__(self) -> None:
        self.number = {"": 0}

    def __getitem__(self, name: str) -> int:
        return self.number.setdefault(name, len(self.number))


@dataclass(frozen=True, eq=False)
class Jobs:
    """J jobs, one row each.

    Attributes:
        key: number of the job's own name; submit, end, zone_s, state, owner as in Job.
        names: J × CATEGORIES, numbers of names.
        request, ended: J × REQUEST, J × ENDED.
        file, offset: where the job's line begins.
        vocabulary: the names of each category, for `names`.
    """

    key: Ints
    submit: Floats
    end: Floats
    zone_s: Floats
    state: Ints
    owner: Ints
    names: Ints
    request: Floats
    ended: Floats
    file: Ints
    offset: Ints
    vocabulary: tuple[Names, ...]

    def __len__(self) -> int:
        return len(self.key)

    def take(self, rows: npt.NDArray[Any]) -> Jobs:
        """The jobs of some rows."""
        columns = {name: value[rows] for name, value in self.__dict__.items() if isinstance(value, np.ndarray)}
        return Jobs(**columns, vocabulary=self.vocabulary)


@dataclass(frozen=True)
class Found:
    """What reading all files met, besides the jobs."""

    num_steps: int
    num_orphan_steps: int
    num_doubles: int
    num_bad_lines: int


class _Builder:
    """Takes jobs in one by one; arrays, as millions of objects would not fit."""

    def __init__(self) -> None:
        self.times, self.numbers = array("d"), array("q")
        self.names, self.request, self.ended = array("q"), array("d"), array("d")
        self.owners, self.vocabulary = Names(), tuple(Names() for _ in CATEGORIES)

    def add(self, job: Job, file: int, offset: int) -> None:
        self.times.extend((job.submit, job.end, job.zone_s))
        self.numbers.extend((_hash(job.key), job.state, self.owners[job.owner], file, offset))
        self.names.extend([names[name] for names, name in zip(self.vocabulary, job.names, strict=True)])
        self.request.extend(job.request)
        self.ended.extend(job.ended)

    def finish(self) -> Jobs:
        times = np.frombuffer(self.times, np.float64).reshape(-1, 3)
        numbers = np.frombuffer(self.numbers, np.int64).reshape(-1, 5)
        return Jobs(
            submit=times[:, 0],
            end=times[:, 1],
            zone_s=times[:, 2],
            key=numbers[:, 0],
            state=numbers[:, 1],
            owner=numbers[:, 2],
            file=numbers[:, 3],
            offset=numbers[:, 4],
            names=np.frombuffer(self.names, np.int64).reshape(-1, len(CATEGORIES)),
            request=np.frombuffer(self.request, np.float64).reshape(-1, len(REQUEST)),
            ended=np.frombuffer(self.ended, np.float64).reshape(-1, len(ENDED)).copy(),
            vocabulary=self.vocabulary,
        )


def read_jobs(
    paths: Sequence[Path], layouts: Sequence[Layout], fold_steps: bool, skip_bad_lines: bool
) -> tuple[Jobs, Found]:
    """All jobs of all files by time of submission; each run of a job once, with its latest state.

    Args:
        paths: the logs.
        layouts: of each.
        fold_steps: take what a job's own line lacks (memory and CPU time used) from the lines of its steps.
        skip_bad_lines: leave out lines that cannot be read, and count them.

    Raises:
        UsageError: a damaged file, a line that cannot be read, or no job at all.
    """
    builder = _Builder()
    # Of each step: its job's key and how many jobs were read before it; CPU time and memory.
    step_numbers, step_values = array("q"), array("d")
    num_steps = num_bad = count = 0
    for place, (path, layout) in enumerate(zip(paths, layouts, strict=True)):
        with LineReader(path) as lines:
            offset = 0
            for line in lines:
                begin, offset = offset, lines.offset
                if not layout.is_job(line):
                    continue
                try:
                    job = layout.parse(line)
                except ValueError as error:
                    num_bad += 1
                    _report(f"{lines.where()}: {' '.join(str(error).split())}", skip_bad_lines, num_bad)
                    continue
                if job.is_step:
                    num_steps += 1
                    step_numbers.extend((_hash(job.key), count))
                    step_values.extend((job.ended[CPU_TIME], job.ended[MAX_RSS]))
                    continue
                builder.add(job, place, begin)
                count += 1
    if num_bad > _MAX_WARNINGS:
        print(f"hpcdl: … and {num_bad - _MAX_WARNINGS} more such lines", file=sys.stderr)
    if not count:
        raise UsageError(f"{paths[0]}: no job in {'these files' if len(paths) > 1 else 'it'}; the log needs jobs")
    jobs = builder.finish()
    orphans = 0
    if num_steps and fold_steps:
        numbers = np.frombuffer(step_numbers, np.int64).reshape(-1, 2)
        orphans = _fold(jobs, numbers[:, 0], numbers[:, 1], np.frombuffer(step_values, np.float64).reshape(-1, 2))
    kept = _without_doubles(jobs)
    kept = kept[np.lexsort((kept, jobs.submit[kept]))]
    return jobs.take(kept), Found(num_steps, orphans, count - len(kept), num_bad)


def read_jobs_at(paths: Sequence[Path], layouts: Sequence[Layout], file: Ints, offset: Ints) -> Jobs:
    """The jobs whose lines begin at these bytes, in this order.

    Raises:
        UsageError: a file is not as it was when these lines were found.
    """
    builder = _Builder()
    order = np.lexsort((offset, file))
    for place in np.unique(file).tolist():
        with LineReader(paths[place]) as lines:
            for row in order[file[order] == place].tolist():
                lines.go_to(int(offset[row]))
                try:
                    builder.add(layouts[place].parse(next(lines)), place, int(offset[row]))
                except (ValueError, StopIteration):
                    raise UsageError(
                        f"{paths[place]}: its lines have changed since it was planned; run the same command again"
                    ) from None
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return builder.finish().take(back)


def _report(what: str, skip: bool, number: int) -> None:
    if not skip:
        raise UsageError(f"{what}; mend or remove the line, or leave such lines out by --bad-lines skip")
    if number <= _MAX_WARNINGS:
        print(f"hpcdl: left out: {what}", file=sys.stderr)


def _hash(key: str) -> int:
    """A number for a job's name that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") >> 1


def _fold(jobs: Jobs, key: Ints, before: Ints, values: Floats) -> int:
    """Bring memory and CPU time of steps into their jobs; returns how many steps have no job.

    A step belongs to the last job of its name before it (runs of a requeued job share a name), or else to the first after.
    """
    order = np.argsort(jobs.key, kind="stable")
    ordered = jobs.key[order]
    low, high = np.searchsorted(ordered, key), np.searchsorted(ordered, key, side="right")
    # Within one name `order` ascends, so jobs of this name and before this line lie side by side.
    rank = np.lexsort((np.r_[np.arange(len(jobs)), before - 0.5], np.r_[jobs.key, key]))
    is_job = rank < len(jobs)
    jobs_before = np.empty(len(rank), np.int64)
    jobs_before[rank] = np.cumsum(is_job)
    place = np.maximum(jobs_before[len(jobs) :] - 1, low)
    known = (high > low) & (place < high)
    owner = order[np.where(known, place, 0)]
    cpu_time, max_rss = np.full((2, len(jobs)), np.nan)
    usable = known & ~np.isnan(values[:, 0])
    cpu_time[owner[usable]] = 0.0
    np.add.at(cpu_time, owner[usable], values[usable, 0])
    np.fmax.at(max_rss, owner[known], values[known, 1])
    for column, folded in ((CPU_TIME, cpu_time), (MAX_RSS, max_rss)):
        own = jobs.ended[:, column]
        own[np.isnan(own)] = folded[np.isnan(own)]
    return int((~known).sum())


def _without_doubles(jobs: Jobs) -> Ints:
    """Rows to keep: of lines of one job and one submission (dumps overlap) those that are final, each run once."""
    final = _IS_FINAL[jobs.state]
    end = np.nan_to_num(jobs.end, nan=-1.0)
    order = np.lexsort((np.arange(len(jobs)), end, final, jobs.submit, jobs.key))
    same = (np.diff(jobs.key[order]) == 0) & (np.diff(jobs.submit[order]) == 0)
    later_differs = (np.diff(end[order]) != 0) | (np.diff(jobs.state[order]) != 0)
    # The one after it in this order is of the same job: it stays beside that only as a final run of its own.
    drop = np.r_[same & (~final[order][:-1] | ~later_differs), False]
    kept: Ints = order[~drop]
    return kept
