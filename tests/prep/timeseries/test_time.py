from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from hpcdl.errors import UsageError
from hpcdl.prep.timeseries.time import TimeColumn, parse_time, time_text


def read(cells, form=None):
    column = TimeColumn(form)
    for line, cell in enumerate(cells, start=2):
        column.add(cell, f"t.csv, line {line}")
    return column.finish()


def seconds(*parts):
    return datetime(*parts, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("cells", "form", "first"),
    [
        (["2000-01-03", "2000-01-04"], "iso", (2000, 1, 3)),
        (["2000-01-03 10:20", "2000-01-04 00:00:01"], "iso", (2000, 1, 3, 10, 20)),
        (["2000-01-03T10:20:00Z", "2000-01-03T12:20:00+02:00"], "iso with offset", (2000, 1, 3, 10, 20)),
        (["Jan 1 2000", "Feb  1 2000"], "%b %d %Y", (2000, 1, 1)),
        (["January 1, 2000"], "%B %d, %Y", (2000, 1, 1)),
        (["31.12.1999", "01.01.2000"], "%d.%m.%Y", (1999, 12, 31)),
        (["1/13/2000", "2/1/2000"], "%m/%d/%Y", (2000, 1, 13)),
        (["13/1/2000 5:00", "1/2/2000 6:00"], "%d/%m/%Y %H:%M", (2000, 1, 13, 5)),
        (["20200131", "20200201"], "%Y%m%d", (2020, 1, 31)),
        (["Jan 2000", "Feb 2000"], "%b %Y", (2000, 1, 1)),
    ],
)
def test_the_form_of_dates_is_found_out(cells, form, first):
    found, times = read(cells)
    assert found == form
    assert times[0] == seconds(*first)


def test_numbers_stay_numbers():
    form, times = read(["20200131", "20200132", "-5", "1e3"])
    assert form == "number"
    np.testing.assert_array_equal(times, [20200131, 20200132, -5, 1000])


def test_days_and_months_that_look_alike_are_refused_until_a_form_is_given():
    cells = ["1/2/2000", "3/4/2000"]
    with pytest.raises(UsageError, match=r"fit both '%m/%d/%Y' and '%d/%m/%Y'.*--time-format"):
        read(cells)
    assert read(cells, "%d/%m/%Y")[1][0] == seconds(2000, 2, 1)
    assert read(["1/1/2000", "2/2/2000"])[1][0] == seconds(2000, 1, 1)  # both mean the same days


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["2000-01-03", ""], "line 3: the time is missing"),
        (["2000-01-03", "2000-02-30"], r"line 3: time '2000-02-30' does not fit iso"),
        (["2000-01-03", "2000-01-03T00:00Z"], r"line 3: time '2000-01-03T00:00Z' does not fit iso"),
        (["yesterday"], "line 2: time 'yesterday' is of no known form"),
        (["nan"], "is of no known form"),
        (["1", "1_000"], "does not fit number"),
    ],
)
def test_what_is_no_time_is_refused_with_its_line(cells, message):
    with pytest.raises(UsageError, match=message):
        read(cells)


def test_times_for_people():
    assert time_text(parse_time("2000-01-03", "iso"), "iso") == "2000-01-03"
    assert time_text(parse_time("2000-01-03T01:02:03", "iso"), "iso") == "2000-01-03 01:02:03"
    assert time_text(17, "number") == "17"
