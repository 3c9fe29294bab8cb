"""Turn a cluster's job logs into samples for predicting at submission whether a job will fail, as HDF5 shards.

    hpcdl preprocess joblogs --logs sacct.txt --history 16 -o data/jobs

A sample is a job and those its user submitted before it. Train, val and test follow one another in time. Names of users,
groups, accounts and jobs are replaced by numbers; they are in no shard and not in the manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hpcdl.errors import UsageError
from hpcdl.prep import plan as plans
from hpcdl.prep.byte_lines import file_state, find_files
from hpcdl.prep.joblog.features import (
    OUTCOME,
    SUBMIT,
    fit_scale,
    fit_vocabulary,
    measured_outcome,
    measured_request,
    read_salt,
)
from hpcdl.prep.joblog.history import find_history
from hpcdl.prep.joblog.labels import CLASSES, DROPPED, check_classes, count_left_out, labels_of_states, state_numbers
from hpcdl.prep.joblog.live_sacct import fetch
from hpcdl.prep.joblog.record import ENDED, FINAL, STATES
from hpcdl.prep.joblog.sacct import COLUMNS_FILE, columns_of, read_sacct_layout
from hpcdl.prep.joblog.sacct_values import clock_text
from hpcdl.prep.joblog.shards import JobReader, make_tasks
from hpcdl.prep.joblog.swf import looks_like_swf, read_swf_layout
from hpcdl.prep.joblog.table import Layout, read_jobs
from hpcdl.prep.partition import check_fractions
from hpcdl.prep.statistics import histogram
from hpcdl.prep.timeseries.windows import borders, split_of

# Part of every plan's digest: raise it when the same settings and sources come to mean other bytes.
_REVISION = 1

# Below these a summary warns: fewer failures or days teach a model little.
_FEW_FAILURES, _FEW_DAYS = 50, 14


@dataclass(frozen=True)
class Settings:
    """What `hpcdl preprocess joblogs` accepts."""

    logs: tuple[str, ...]
    """Logs of one system, files or globs, plain or gzip; with live, the one file that keeps sacct's answer"""
    format: Literal["auto", "sacct", "swf"] = "auto"
    """Of the logs: sacct --parsable2, or Standard Workload Format"""
    columns: tuple[str, ...] = ()
    """Columns of sacct dumps without a header, or a file that names them (default: COLUMNS.txt beside the log)"""
    delimiter: str = "|"
    """What is between the columns of sacct dumps"""
    live: bool = False
    """Run sacct now, and keep its answer in the file that logs names; a file that is there is read as it is"""
    since: str = "now-30days"
    """With live: start of the time to ask for, as sacct takes it"""
    until: str = "now"
    """With live: its end"""
    live_timeout_s: int = 1800
    """With live: how long sacct may take"""
    steps: Literal["fold", "ignore"] = "fold"
    """Lines of job steps: take memory and CPU time from them where a job's own line has none, or leave them aside"""
    bad_lines: Literal["refuse", "skip"] = "refuse"
    """Lines that cannot be read"""
    cancelled: Literal["drop", "failed", "completed"] = "drop"
    """What cancelled jobs count as; dropped ones still are part of other jobs' history"""
    preempted: Literal["drop", "failed", "completed"] = "drop"
    """The same of preempted jobs"""
    history: int = 16
    """Length of a sequence: the job itself and the jobs its user submitted before"""
    timing: bool = True
    """Store hour, weekday and the time since the user's last submission; a log of a few days teaches nothing by them"""
    vocabulary: int = 1000
    """At most so many users, groups, accounts, partitions, QOS and job names get numbers of their own, the most frequent"""
    min_count: int = 2
    """So often must a name occur in train to get a number of its own"""
    salt_file: str | None = None
    """File with a secret of 16 bytes or more: the manifest then lists keyed hashes of the names, in order of their numbers"""
    val_fraction: float = 0.1
    """Share of the jobs that go to val, those before test"""
    test_fraction: float = 0.2
    """Share of the jobs that go to test, the latest"""
    shard_mb: int = 32
    """Size of a shard, at most, in megabytes"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan(plans.Plan):
    """A plan with what the workers read by; `items` of its tasks are job_history.Items."""

    reader: JobReader
    states: Mapping[str, int]
    read: Mapping[str, int]
    starts: Mapping[str, int]
    categories: tuple[Mapping[str, Any], ...]
    train_days: float
    options: Settings


def plan(settings: Settings) -> Plan:
    """Read all logs once, label the jobs, choose the borders in time, and fit scales and vocabularies on train.

    Raises:
        UsageError: a setting or a log is not usable; says which and what to do.
        FailedError, TimeOutError: sacct has failed, or did not end.
    """
    _check(settings)
    salt = read_salt(settings.salt_file)
    if settings.live:
        _ask(settings)
    paths = tuple(path for path in find_files(settings.logs, "--logs") if path.name != COLUMNS_FILE)
    if not paths:
        raise UsageError(f"--logs names only {COLUMNS_FILE}; give the logs themselves")
    layouts = _layouts(settings, paths)
    file_states = tuple(file_state(path) for path in paths)
    sources = plans.describe_sources([("log", path) for path in paths])
    jobs, found = read_jobs(paths, layouts, settings.steps == "fold", settings.bad_lines == "skip")
    states = {STATES[state]: count for state, count in enumerate(np.bincount(jobs.state).tolist()) if count}
    of_states = labels_of_states(settings.cancelled, settings.preempted)
    labels = of_states[jobs.state]
    kept = np.flatnonzero(labels != DROPPED)
    check_classes(labels[kept], states)

    val, test = borders(jobs.submit[kept], settings.val_fraction, settings.test_fraction, None, None)
    split = split_of(jobs.submit, val, test)
    samples = {name: kept[split[kept] == number] for number, name in enumerate(plans.SPLITS)}
    _check_splits(settings, samples)
    history = find_history(jobs.owner, jobs.submit)
    train = np.flatnonzero(split == 0)
    final = np.isin(np.arange(len(STATES)), state_numbers(*FINAL))
    # What ends after train is over is not known when a model is trained on it.
    ended = train[(jobs.end[train] <= min(val, test)) & final[jobs.state[train]]]
    reader = JobReader(
        paths=paths,
        states=file_states,
        layouts=tuple(layouts),
        num_steps=settings.history,
        timing=settings.timing,
        labels=of_states,
        final=final,
        submit=fit_scale(measured_request(jobs.take(train), history.since[train])),
        outcome=fit_scale(measured_outcome(jobs.take(ended))),
        vocabulary=fit_vocabulary(jobs.take(train), settings.vocabulary, settings.min_count),
    )
    fields = reader.describe()
    tasks = make_tasks(jobs, history, samples, fields, settings.history, settings.shard_mb)
    named = ("logs", "columns", "salt_file", "live", "since", "until", "live_timeout_s")
    decisive = {key: value for key, value in dataclasses.asdict(settings).items() if key not in named}
    content = [[source.sha256 for source in sources], [getattr(layout, "columns", None) for layout in layouts]]
    rows = [[task.name, len(task.items), hashlib.sha256(task.items.offset.tobytes()).hexdigest()] for task in tasks]
    return Plan(
        digest=plans.plan_digest("joblogs", _REVISION, decisive, content, rows, SUBMIT, OUTCOME, ENDED),
        settings=dataclasses.asdict(settings),
        sources=sources,
        fields=fields,
        shards=tasks,
        counts=count_left_out(labels, jobs.state, split),
        reader=reader,
        states=states,
        read=dataclasses.asdict(found),
        starts={name: int(time) for name, time in (("val", val), ("test", test)) if len(samples[name])},
        categories=tuple(reader.vocabulary.to_json(salt)),
        train_days=float(np.ptp(jobs.submit[samples["train"]])) / 86400,
        options=settings,
    )


def make_shard(plan: Plan, task: plans.ShardTask) -> plans.ShardContent:
    """The samples of the task's jobs, made of their lines and those of their predecessors.

    Raises:
        FailedError: a log has been changed or damaged since it was planned.
    """
    fields = plan.reader.fields(task.items)
    return plans.ShardContent(fields, {"histogram": histogram(fields["label"], len(CLASSES))})


def manifest_entries(plan: Plan, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Classes and their counts, names of the features, scales and categories; see docs/inputs/joblogs.md."""
    counts = {split: np.zeros(len(CLASSES), np.int64) for split in plans.SPLITS}
    for task in plan.shards:
        counts[task.split] = counts[task.split] + np.asarray(attributes[task.name]["histogram"])
    reader = plan.reader
    return {
        "classes": [{"index": index, "name": name} for index, name in enumerate(CLASSES)],
        "class_counts": {split: numbers.tolist() for split, numbers in counts.items() if numbers.any()},
        "features": {"submit": list(reader.submit_names), "outcome": list(OUTCOME), "end": list(ENDED)},
        "categories": [dict(category) for category in plan.categories],
        "scaling": reader.scaling_to_json(),
        "time": {"unit": "seconds since 1970-01-01", "starts": dict(plan.starts)},
        "log": {**plan.read, "states": dict(plan.states)},
        "statistics": {"label": {"histogram": counts["train"].tolist()}},
    }


def summary(plan: Plan, entries: Mapping[str, Any]) -> list[str]:
    """States, the failure rate of each split, categories, and what was left out."""
    states = sorted(plan.states.items(), key=lambda state: -state[1])
    lines = [f"{sum(plan.states.values())} jobs: " + ", ".join(f"{name} {count}" for name, count in states)]
    for split, (completed, failed) in entries["class_counts"].items():
        start = plan.starts.get(split)
        begin = f", submitted from {clock_text(start)}" if start is not None else ""
        share = failed / max(1, completed + failed)
        left = ", ".join(f"{count} {name.removeprefix('num_')}" for name, count in plan.counts[split].items() if count)
        lines.append(
            f"{split}: {completed} completed, {failed} failed, failure rate {share:.2%}{begin}"
            + (f"; left out: {left}" if left else "")
        )
    sizes = ", ".join(f"{entry['name']} {entry['size'] - 1}" for entry in plan.categories)
    lines.append(f"names with a number of their own: {sizes}")
    words = {
        "num_steps": "lines of job steps",
        "num_orphan_steps": "steps without their job",
        "num_doubles": "lines of a job that another line tells, too",
        "num_bad_lines": "lines left out as not readable",
    }
    lines += [f"{plan.read[name]} {text}" for name, text in words.items() if plan.read[name]]
    failed = entries["statistics"]["label"]["histogram"][1]
    if failed < _FEW_FAILURES:
        lines.append(
            f"warning: only {failed} jobs of train have failed; scores will depend on chance: use a longer log"
        )
    if plan.options.timing and plan.train_days < _FEW_DAYS:
        lines.append(
            f"warning: train is {plan.train_days:.1f} days long, so no weekday came more than twice; --no-timing leaves "
            "the features of the clock out"
        )
    return lines


def _check(settings: Settings) -> None:
    for name in ("history", "vocabulary", "min_count", "live_timeout_s", "shard_mb"):
        if getattr(settings, name) < 1:
            raise UsageError(f"{name} is {getattr(settings, name)}; it must be at least 1")
    if not settings.delimiter:
        raise UsageError("delimiter is empty; name what is between the columns, such as '|'")
    if settings.live and len(settings.logs) != 1:
        raise UsageError(f"with live, logs is the one file that keeps sacct's answer; {len(settings.logs)} are given")
    if settings.live and settings.format == "swf":
        raise UsageError("live asks sacct, and format is swf; leave one out")
    check_fractions(settings.val_fraction, settings.test_fraction)


def _ask(settings: Settings) -> None:
    path = Path(settings.logs[0]).expanduser().absolute()
    if path.exists():
        print(f"hpcdl: {path} is there already and is read as it is; remove it to ask sacct again", file=sys.stderr)
    else:
        fetch(path, settings.since, settings.until, settings.live_timeout_s)


def _layouts(settings: Settings, paths: tuple[Path, ...]) -> list[Layout]:
    columns = list(settings.columns)
    if len(columns) == 1 and Path(columns[0]).expanduser().is_file():
        columns = columns_of(Path(columns[0]).expanduser())
    columns = [name for part in columns for name in re.split(r"[|,\s]+", part) if name]
    layouts: list[Layout] = []
    for path in paths:
        swf = settings.format == "swf" or (settings.format == "auto" and looks_like_swf(path))
        layouts.append(read_swf_layout(path) if swf else read_sacct_layout(path, settings.delimiter, columns))
    return layouts


def _check_splits(settings: Settings, samples: Mapping[str, npt.NDArray[np.int64]]) -> None:
    wanted = {"train": 1.0, "val": settings.val_fraction, "test": settings.test_fraction}
    for name in plans.SPLITS:
        if wanted[name] > 0 and not len(samples[name]):
            raise UsageError(
                f"the {name} split gets no job: {sum(map(len, samples.values()))} jobs are too few for these fractions, "
                "or were submitted at one time; give other fractions, or 0 to leave a split out"
            )
