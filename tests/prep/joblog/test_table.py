from __future__ import annotations

import gzip

import numpy as np
import pytest

from hpcdl.errors import UsageError
from hpcdl.prep.joblog.record import CPU_TIME, MAX_RSS, STATES
from hpcdl.prep.joblog.sacct import read_sacct_layout
from hpcdl.prep.joblog.table import read_jobs, read_jobs_at

HEADER = "JobID|User|Submit|Start|End|State|MaxRSS|TotalCPU"


def day(number):
    return f"2024-05-{number:02}T00:00:00"


def row(job, submit=1, start=2, end=3, state="COMPLETED", user="u", rss="", cpu=""):
    times = "|".join("Unknown" if time is None else day(time) for time in (submit, start, end))
    return f"{job}|{user}|{times}|{state}|{rss}|{cpu}"


def read(tmp_path, *files, fold=True, skip=False):
    paths = []
    for number, rows in enumerate(files):
        paths.append(tmp_path / f"{number}.txt")
        paths[-1].write_text("\n".join([HEADER, *rows]) + "\n")
    layouts = [read_sacct_layout(path, "|", ()) for path in paths]
    return (*read_jobs(paths, layouts, fold, skip), paths, layouts)


def test_steps_are_folded_into_the_run_they_belong_to(tmp_path):
    rows = [
        row(1, submit=1, end=3, state="PREEMPTED"), row("1.batch", rss="100K", cpu="00:10"),
        row(1, submit=4, end=6), row("1.batch", rss="300K", cpu="00:20"), row("1.0", rss="200K", cpu="01:00"),
        row("1.extern"), row(2, rss="7M", cpu="00:05"), row("2.0", rss="9M", cpu="00:06"), row("99.0", rss="1M"),
    ]  # fmt: skip
    jobs, found, *_ = read(tmp_path, rows)
    assert (found.num_steps, found.num_orphan_steps, len(jobs)) == (6, 1, 3)
    by_end = jobs.take(np.argsort(jobs.end, kind="stable"))
    order = [
        (STATES[state], *values)
        for state, values in zip(by_end.state, by_end.ended[:, [MAX_RSS, CPU_TIME]], strict=True)
    ]
    assert sorted(order) == [
        ("COMPLETED", 300 / 1024, 80), ("COMPLETED", 7, 5), ("PREEMPTED", 100 / 1024, 10),
    ]  # fmt: skip
    jobs, found, *_ = read(tmp_path, rows, fold=False)
    assert np.isnan(jobs.ended[:, MAX_RSS]).sum() == 2


def test_steps_that_come_first_find_their_job_and_other_jobs_stay_as_they_are(tmp_path):
    rows = [row("5.0", rss="1M", cpu="00:01"), *(row(job) for job in range(1, 9))]
    jobs, found, *_ = read(tmp_path, rows)
    assert found.num_orphan_steps == 0
    assert np.flatnonzero(~np.isnan(jobs.ended[:, MAX_RSS])).tolist() == [4]


def test_overlapping_dumps_tell_each_run_once_with_its_latest_state(tmp_path):
    first = [row(1), row(2, end=None, state="RUNNING"), row(3, start=None, end=None, state="PENDING")]
    second = [
        row(2, end=5),
        row(1),
        row(3, start=None, end=None, state="PENDING"),
        HEADER,
        row(1, submit=9, start=10, end=11),
    ]
    jobs, found, *_ = read(tmp_path, first, second)
    assert found.num_doubles == 3
    assert [STATES[state] for state in jobs.state] == ["COMPLETED", "COMPLETED", "PENDING", "COMPLETED"]
    assert (np.diff(jobs.submit) >= 0).all()


def test_jobs_are_read_again_where_they_begin(tmp_path):
    files = [
        [row(job, submit=1 + (7 * job) % 20, user=f"u{job % 3}") for job in range(k * 20, k * 20 + 20)] for k in (0, 1)
    ]
    jobs, _, paths, layouts = read(tmp_path, *files)
    paths[1].write_bytes(gzip.compress(paths[1].read_bytes()))
    chosen = np.random.default_rng(0).permutation(40)[:15]
    again = read_jobs_at(paths, layouts, jobs.file[chosen], jobs.offset[chosen])
    for name in ("key", "submit", "end", "state", "request"):
        np.testing.assert_array_equal(getattr(again, name), getattr(jobs, name)[chosen])
    with pytest.raises(UsageError, match=r"0\.txt: its lines have changed"):
        read_jobs_at(paths, layouts, np.array([0]), np.array([3]))
    with pytest.raises(UsageError, match=r"0\.txt: its lines have changed"):
        read_jobs_at(paths, layouts, np.array([0]), np.array([10**6]))


def test_lines_that_cannot_be_read_are_refused_or_counted_without_naming_anybody(tmp_path, capsys):
    rows = [row(1), *(f"{job}|secretuser|x" for job in range(2, 14)), row(20)]
    with pytest.raises(UsageError, match=r"0\.txt, line 3: 3 cells where there are 8 columns; .*--bad-lines skip"):
        read(tmp_path, rows)
    jobs, found, *_ = read(tmp_path, rows, skip=True)
    assert (len(jobs), found.num_bad_lines) == (2, 12)
    told = capsys.readouterr().err
    assert told.count("left out: ") == 10
    assert "and 2 more such lines" in told
    assert "secretuser" not in told
    with pytest.raises(UsageError, match="no job in it"):
        read(tmp_path, [])
    with pytest.raises(UsageError, match="no job in it"):
        read(tmp_path, [row("1.batch")])
