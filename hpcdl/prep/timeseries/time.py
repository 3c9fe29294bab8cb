"""The time column of a table: which way of writing times fits all its cells, and the times as numbers."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from hpcdl.errors import UsageError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_DAYS = (
    "%b %d %Y", "%b %d, %Y", "%B %d %Y", "%B %d, %Y", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%d %B %Y", "%b %Y", "%B %Y",
    "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d", "%m/%d/%y", "%d/%m/%y", "%Y-%m",
)  # fmt: skip
_HOURS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")


class TimeColumn:
    """Takes the cells of a time column one by one, and keeps those ways of writing times that fit all of them.

    Times with an offset or Z are turned into UTC; times without one are taken as UTC.
    """

    def __init__(self, form: str | None) -> None:
        """`form`: "iso", "number", a format of strptime, or None to find out.

        Raises:
            UsageError: a format without any field.
        """
        if form is not None and form not in ("iso", "number") and "%" not in form:
            raise UsageError(f"time_format {form!r} is no format; give iso, number, or one such as '%d.%m.%Y %H:%M'")
        self._form = form
        self._kept: dict[str, tuple[Callable[[str], float], array[float]]] = {}
        self._count = 0

    def add(self, cell: str, where: str) -> None:
        """Take one cell in; `where` names it in messages.

        Raises:
            UsageError: it is empty, or fits no way of writing times that all cells before it fit.
        """
        text = " ".join(cell.split())
        if not text:
            raise UsageError(f"{where}: the time is missing; fill it in, or leave the line out")
        if self._count == 0:
            self._kept = {form: (_parser(form), array("d")) for form in self._candidates(text)}
        failed = []
        for form, (parse, values) in self._kept.items():
            try:
                values.append(parse(text))
            except (ValueError, OverflowError):
                failed.append(form)
        if len(failed) == len(self._kept):
            forms = (
                f"does not fit {' or '.join(failed)}, as the times before it do" if failed else "is of no known form"
            )
            raise UsageError(f"{where}: time {text[:60]!r} {forms}; name the form by --time-format, such as '%d.%m.%Y'")
        for form in failed:
            del self._kept[form]
        self._count += 1

    def finish(self) -> tuple[str, npt.NDArray[np.float64]]:
        """(form, times): seconds since 1970 for dates, the number itself for numbers.

        Raises:
            UsageError: days and months cannot be told apart.
        """
        if len(self._kept) > 1:
            # Whole columns such as 20200131 are days: as numbers they would have holes.
            self._kept.pop("number", None)
        forms = list(self._kept)
        times = [np.frombuffer(values, np.float64) for _, values in self._kept.values()]
        for form, other in zip(forms[1:], times[1:], strict=True):
            if not np.array_equal(times[0], other):
                raise UsageError(
                    f"the times fit both {forms[0]!r} and {form!r}, and mean different days; choose one by --time-format"
                )
        return forms[0], times[0]

    def _candidates(self, text: str) -> list[str]:
        if self._form is not None:
            return ["iso", "iso with offset"] if self._form == "iso" else [self._form]
        forms = ["number", "iso", "iso with offset", "%Y%m%d", *(day + hour for day in _DAYS for hour in _HOURS)]
        return [form for form in forms if _fits(form, text)]


def parse_time(text: str, form: str) -> float:
    """One time in a known form.

    Raises:
        ValueError: it is not of this form.
    """
    return _parser(form)(" ".join(text.split()))


def time_text(value: float, form: str) -> str:
    """A time for people: a date, or the number as it is."""
    if form in ("number", "row"):
        return f"{value:.10g}"
    moment = datetime.fromtimestamp(value, UTC)
    return f"{moment:%Y-%m-%d}" if value % 86400 == 0 else f"{moment:%Y-%m-%d %H:%M:%S}"


def _fits(form: str, text: str) -> bool:
    try:
        _parser(form)(text)
    except (ValueError, OverflowError):
        return False
    return True


def _parser(form: str) -> Callable[[str], float]:
    if form == "number":
        return _number
    # Series in long form repeat their times.
    return lru_cache(maxsize=65536)(lambda text: _seconds(_moment(text, form)))


def _moment(text: str, form: str) -> datetime:
    if form in ("iso", "iso with offset"):
        # fromisoformat takes bare digits, too; these are told apart as numbers or days.
        if text[4:5] != "-" and "T" not in text:
            raise ValueError(text)
        moment = datetime.fromisoformat(text)
        if (moment.tzinfo is not None) != (form == "iso with offset"):
            raise ValueError(text)
        return moment
    if form == "%Y%m%d" and len(text) != 8:
        raise ValueError(text)
    return datetime.strptime(text, form)


def _seconds(moment: datetime) -> float:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH).total_seconds()


def _number(text: str) -> float:
    value = float(text) if "_" not in text else math.nan
    if not math.isfinite(value):
        raise ValueError(text)
    return value
