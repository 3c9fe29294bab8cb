from __future__ import annotations

import pytest

from hpcdl.resources import Resources, parse_memory, parse_time, time_text


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("30", 30), ("1:30", 1.5), ("02:00:00", 120), ("1-0", 1440), ("1-02:30", 1590), ("2-00:00:30", 2880.5)],
)
def test_slurm_times(text: str, minutes: float) -> None:
    assert parse_time(text) == minutes
    assert parse_time(time_text(minutes)) == minutes


@pytest.mark.parametrize("text", ["", "1h", "-5", "1:2:3:4", "1-", "a"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HH:MM:SS"):
        parse_time(text)


@pytest.mark.parametrize(
    ("text", "megabytes"), [("4000", 4000), ("64G", 65536), ("1T", 1048576), ("2048K", 2), ("8gb", 8192)]
)
def test_memory_sizes(text: str, megabytes: int) -> None:
    assert parse_memory(text) == megabytes


@pytest.mark.parametrize(
    "values",
    [
        {"time": "0"},
        {"mem": "lots"},
        {"partition": "a\nb"},
        {"signal": "USR1"},
        {"signal": "TERM@60"},
        {"signal": "B:USR1@60"},
        {"signal": "USR1@-5"},
        {"signal": "USR1@600", "time": "10"},
    ],
)
def test_unusable_requests_are_refused(values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Resources(**values).validate()


@pytest.mark.parametrize(
    ("time", "lead_s"),
    [("0:20", 10), ("1", 30), ("3:20", 30), ("10", 90), ("1:00:00", 540), ("2:00:00", 600), ("2-00:00:00", 600)],
)
def test_a_training_is_warned_a_part_of_its_time_before_the_end(time: str, lead_s: int) -> None:
    assert Resources(time=time).lead_s == lead_s


def test_a_lead_time_that_was_chosen() -> None:
    resources = Resources(time="10", signal="USR1@45")
    resources.validate()
    assert resources.lead_s == 45
