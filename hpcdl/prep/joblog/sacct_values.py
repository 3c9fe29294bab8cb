"""The values that Slurm's sacct writes: times, durations, sizes, states, exit codes, lists of resources.

Source: the manual pages of sacct and slurm.conf, releases 15.08 to 24.05.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from hpcdl.prep.joblog.record import LAST_SECOND, STATES

_EPOCH = datetime(1970, 1, 1)  # sacct writes the local clock without its zone; it is counted as it stands
_NO_TIME = frozenset({"", "unknown", "none", "n/a", "invalid", "0"})
_NO_LIMIT = frozenset({"", "unlimited", "partition_limit", "infinite", "none", "unknown", "n/a", "invalid"})
_DURATION = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGTPE]?)[Bb]?([nc?]?)", re.IGNORECASE)
_MEGABYTES = {"": 1.0, "K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2, "P": 1024.0**3, "E": 1024.0**4}
_STATE_NUMBER = {state: number for number, state in enumerate(STATES)}

# Slurm marks memory per CPU by the highest bit; old dumps show the marked number.
_PER_CPU_BITS = (2.0**63, 2.0**31)


def time_seconds(text: str) -> float:
    """Seconds since 1970 of a time such as 2016-12-21T21:43:34 or 1482356614, NaN for Unknown.

    Raises:
        ValueError: neither.
    """
    if text.lower() in _NO_TIME:
        return math.nan
    if text.isdecimal() and int(text) <= LAST_SECOND:
        return float(text)
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is not None:
        return moment.timestamp()
    return (moment - _EPOCH).total_seconds()


def duration_seconds(text: str) -> float:
    """Seconds of [D-][HH:]MM:SS[.fff], NaN for none.

    Raises:
        ValueError: not of this form.
    """
    if text.lower() in _NO_LIMIT:
        return math.nan
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no duration such as 1-06:30:00")
    days, hours, minutes, seconds = found.groups()
    return int(days or 0) * 86400 + int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds)


def number(text: str) -> float:
    """A number such as 12, 4K or 2.5M, NaN for none.

    Raises:
        ValueError: not of this form.
    """
    if text.lower() in _NO_LIMIT:
        return math.nan
    scale = {"K": 1e3, "M": 1e6, "G": 1e9}.get(text[-1].upper())
    value = float(text[:-1]) * scale if scale else float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{text!r} is no number")
    return value


def requested_megabytes(text: str, cpus: float, nodes: float) -> float:
    """Memory of the whole job from ReqMem such as 4Gn (a node), 2800Mc (a CPU) or 16G (all), NaN for none or 0 (no limit).

    Raises:
        ValueError: not of this form.
    """
    if text.lower() in _NO_LIMIT or text == "?":
        return math.nan
    amount, unit = _size(text)
    for bit in _PER_CPU_BITS:
        if amount >= bit:
            amount, unit = amount - bit, "c"
            break
    if amount == 0:
        return math.nan
    if unit == "c":
        return amount * cpus
    # A job of unknown size has one node at least.
    return amount * (1.0 if math.isnan(nodes) else nodes) if unit == "n" else amount


def used_megabytes(text: str) -> float:
    """Memory from MaxRSS such as 123456K; without a unit it is bytes; NaN for none.

    Raises:
        ValueError: not of this form.
    """
    if text.lower() in _NO_LIMIT:
        return math.nan
    if text.isdecimal():
        return int(text) / 1024**2
    return _size(text)[0]


def exit_status(text: str) -> tuple[float, float]:
    """(code, signal) of an ExitCode such as 1:0, NaN for none.

    Raises:
        ValueError: not of this form.
    """
    if text.lower() in _NO_LIMIT:
        return math.nan, math.nan
    code, _, signal = text.partition(":")
    return float(int(code)), float(int(signal or 0))


def state_number(text: str) -> int:
    """Index into STATES of a state such as COMPLETED, 'CANCELLED by 1234' or a shortened CANCELLED+.

    Raises:
        ValueError: no such state.
    """
    word = text.split(" ", 1)[0].upper()
    number = _STATE_NUMBER.get(word)
    if number is not None:
        return number
    if word.endswith("+") and len(word) > 4:
        matches = [state for state in STATES if state.startswith(word[:-1])]
        if len(matches) == 1:
            return _STATE_NUMBER[matches[0]]
    raise ValueError(f"{text[:40]!r} is no state of Slurm's")


def resources(text: str) -> dict[str, str]:
    """What a TRES list such as cpu=8,mem=22400M,gres/gpu:a100=2 holds, by name."""
    return dict(part.split("=", 1) for part in text.split(",") if "=" in part)


def gpus(tres: dict[str, str], gres: str) -> float:
    """Number of GPUs in a TRES list, or else in a list of generic resources such as gpu:a100:2.

    Raises:
        ValueError: a count that is no number.
    """
    if "gres/gpu" in tres:
        return number(tres["gres/gpu"])
    typed = [number(value) for name, value in tres.items() if name.startswith("gres/gpu:")]
    if typed:
        return sum(typed)
    parts = [part.split("(")[0].split(":") for part in gres.split(",") if part.startswith(("gpu", "gres:gpu"))]
    return sum(float(part[-1]) if part[-1].isdecimal() else 1.0 for part in parts)


def clock_text(seconds: float) -> str:
    """A time for people."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _size(text: str) -> tuple[float, str]:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no size such as 4000M or 4Gn")
    amount, unit, per = found.groups()
    return float(amount) * _MEGABYTES[unit.upper()], per.lower()
