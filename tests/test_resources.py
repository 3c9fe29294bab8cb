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


@pytest.mark.parametrize("values", [{"time": "0"}, {"mem": "lots"}, {"partition": "a\nb"}])
def test_unusable_requests_are_refused(values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Resources(**values).validate()
