from __future__ import annotations

import pytest

from hpcdl.batch.states import STATES, JobInfo, lookup


@pytest.mark.parametrize(
    ("name", "active", "ok"),
    [
        ("RUNNING", True, False),
        ("SUSPENDED", True, False),
        ("COMPLETED", False, True),
        ("CANCELLED by 1000", False, False),
        ("COMPLETED+", False, True),
        ("OUT_OF_MEMORY", False, False),
        ("", True, False),
        ("SOMETHING_NEW", True, False),
    ],
)
def test_lookup(name: str, active: bool, ok: bool) -> None:
    assert (lookup(name).active, lookup(name).ok) == (active, ok)


def test_no_state_goes_on_and_is_a_success() -> None:
    assert not [name for name, state in STATES.items() if state.active and state.ok]


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [("COMPLETED", 0, 0), ("FAILED", 3, 3), ("TIMEOUT", 0, 124), ("CANCELLED", None, 1), ("NODE_FAIL", 0, 1)],
)
def test_exit_code_of_a_command_that_waited(state: str, code: int | None, expected: int) -> None:
    assert JobInfo("1", state, code).process_code() == expected
