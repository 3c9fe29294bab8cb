"""What can go wrong, as a tree: one class an exit code.

HpcdlError
├── FailedError      exit 1: the work was understood and could not be done
├── UsageError       exit 2: the request, its files or its settings are not usable as they stand
└── TimeOutError     exit 124: something did not answer, or did not end, in the time allowed

A message is one line that says where, what, what is allowed and what to do next; the CLI prints it without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HpcdlError(Exception):
    """The base of every error that hpcdl raises on purpose."""

    exit_code = 1


class FailedError(HpcdlError):
    """The work was understood and could not be done."""


class UsageError(HpcdlError):
    """The request, its files or its settings are not usable as they stand."""

    exit_code = 2


class TimeOutError(HpcdlError):
    """Something did not answer, or did not end, in the time allowed."""

    exit_code = 124


def suggestion(wrong: str, allowed: Iterable[str]) -> str:
    """' Did you mean …?' when one of the allowed words is near, else an empty string."""
    near = difflib.get_close_matches(wrong, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
