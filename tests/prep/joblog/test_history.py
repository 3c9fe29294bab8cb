from __future__ import annotations

import numpy as np

from hpcdl.prep.joblog.history import Items, find_history, rows_needed, sequences


def test_each_job_gets_the_jobs_of_its_user_before_it():
    rng = np.random.default_rng(0)
    owner = rng.integers(0, 6, 200)
    submit = np.sort(rng.integers(0, 500, 200)).astype(float)
    history = find_history(owner, submit)
    samples = np.sort(rng.choice(200, 60, replace=False))
    for num_steps in (1, 4, 50):
        rows, at, length = rows_needed(samples, history, num_steps)
        nothing = np.empty(0)
        items = Items(rows, rows, nothing, nothing, at, length)
        found, real = sequences(items, num_steps)
        for sample, jobs, steps in zip(samples, rows[found], real, strict=True):
            own = np.flatnonzero(owner[: sample + 1] == owner[sample])
            wanted = own[-num_steps:] if owner[sample] else [sample]  # owner 0 is unknown: nobody's history
            np.testing.assert_array_equal(jobs[steps], wanted)
        # No more than is needed.
        assert set(rows) == set(rows[found][real])


def test_the_time_since_the_submission_before():
    history = find_history(np.array([1, 2, 1, 0, 0, 1]), np.array([10.0, 11, 15, 16, 17, 15]))
    np.testing.assert_array_equal(history.since, [np.nan, np.nan, 5, np.nan, np.nan, 0])
    np.testing.assert_array_equal(history.rank, [0, 0, 1, 0, 0, 2])
