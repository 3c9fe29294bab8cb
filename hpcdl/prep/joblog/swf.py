"""Job logs in the Standard Workload Format, version 2: 18 numbers a line, comments and header fields after a semicolon.

Source: S. J. Chapin et al., "Benchmarks and Standards for the Evaluation of Parallel Job Schedulers", JSSPP 1999, and
https://www.cs.huji.ac.il/labs/parallel/workload/swf.html
"""

from __future__ import annotations

import re
import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from hpcdl.prep.byte_lines import LineReader
from hpcdl.prep.joblog.record import LAST_SECOND, NAN, STATES, Job

NUM_FIELDS = 18

_STATUS = {
    "1": STATES.index("COMPLETED"), "0": STATES.index("FAILED"), "5": STATES.index("CANCELLED"),
    "-1": STATES.index("UNKNOWN"),
}  # fmt: skip
# Runs of a job that was stopped and continued; the job's own line comes before them.
_PARTS = frozenset({"2", "3", "4"})
_HEADER = re.compile(rb";\s*(\w+)\s*:\s*(.*)")


@dataclass(frozen=True)
class SwfLayout:
    """When the log's clock starts, in seconds since 1970, and where it hangs; without a start it counts from 0."""

    start: float | None
    zone: str | None
    shift_s: float

    def is_job(self, line: bytes) -> bool:
        """Whether a line is neither blank nor a comment."""
        text = line.lstrip()
        return bool(text) and not text.startswith(b";")

    def parse(self, line: bytes) -> Job:
        """The job of a line, or a step when the line is a part of a job's run.

        Raises:
            ValueError: not 18 numbers; says why.
        """
        cells = line.decode("ascii", "replace").split()
        if len(cells) != NUM_FIELDS:
            raise ValueError(f"{len(cells)} fields; a line of SWF has {NUM_FIELDS}")
        # What is unknown is -1.
        values = [NAN if value < 0 else value for value in map(float, cells)]
        number, submit, wait, run, cpus, cpu_time, memory_kb, asked_cpus, asked_s, asked_kb = values[:10]
        if number != number or submit != submit:
            raise ValueError("the number of the job or its time of submission is unknown")
        status = cells[10]
        if status in _PARTS:
            return Job(cells[0], True, NAN, NAN, 0.0, STATES.index("UNKNOWN"), "", (), (), (NAN,) * 8)
        if status not in _STATUS:
            raise ValueError(f"status {status[:20]!r} is none of -1, 0, 1, 2, 3, 4, 5")
        submit += self.start or 0.0
        if submit > LAST_SECOND:
            raise ValueError(f"{cells[1][:20]!r} is no time of submission")
        user, group, executable, queue, partition, before = ("" if cell == "-1" else cell for cell in cells[11:17])
        request = (asked_cpus, NAN, asked_kb * asked_cpus / 1024, asked_s, NAN, NAN, float(bool(before)))
        # CPU time and memory are means a processor.
        ended = (run, wait, NAN, NAN, cpu_time * cpus, memory_kb * cpus / 1024, cpus, NAN)
        zone_s = self.shift_s if self.zone is None else _offset(self.zone, int(submit) // 86400)
        names = (user, group, "", partition, queue, executable)
        return Job(cells[0], False, submit, submit + wait + run, zone_s, _STATUS[status], user, names, request, ended)


def looks_like_swf(path: Path) -> bool:
    """Whether the first line is a comment of SWF or 18 numbers."""
    with LineReader(path) as lines:
        first = next((line for line in lines if line.strip()), b"")
    return first.lstrip().startswith(b";") or re.fullmatch(rb"\s*(-?[\d.]+\s+){17}-?[\d.]+\s*", first) is not None


def read_swf_layout(path: Path) -> SwfLayout:
    """The header's start time and time zone.

    Raises:
        UsageError: the file cannot be read.
    """
    fields: dict[str, str] = {}
    with LineReader(path) as lines:
        for line in lines:
            if line.strip() and not line.lstrip().startswith(b";"):
                break
            if found := _HEADER.match(line.lstrip()):
                fields.setdefault(found[1].decode("ascii", "replace"), found[2].decode("utf-8", "replace").strip())
    zone = fields.get("TimeZoneString")
    try:
        zoneinfo.ZoneInfo(zone or "UTC")
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        zone = None
    return SwfLayout(_number(fields.get("UnixStartTime")), zone, _number(fields.get("TimeZone")) or 0.0)


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").split()[0])
    except (ValueError, IndexError):
        return None


@lru_cache(maxsize=65536)
def _offset(zone: str, day: int) -> float:
    """Seconds that a zone's clock is ahead of UTC on a day since 1970."""
    offset = datetime.fromtimestamp(day * 86400, UTC).astimezone(zoneinfo.ZoneInfo(zone)).utcoffset()
    return offset.total_seconds() if offset is not None else 0.0
