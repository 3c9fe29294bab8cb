"""Dumps of Slurm's accounting, as `sacct --parsable2` (or -p) writes them, with a header line or without."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcdl.errors import UsageError
from hpcdl.prep.byte_lines import LineReader
from hpcdl.prep.joblog.record import NAN, Job
from hpcdl.prep.joblog.sacct_values import (
    duration_seconds,
    exit_status,
    gpus,
    number,
    requested_megabytes,
    resources,
    state_number,
    time_seconds,
    used_megabytes,
)

COLUMNS_FILE = "COLUMNS.txt"

# Columns whose text is the user's, so that it may hold the separator.
_FREE_TEXT = (
    "jobname",
    "comment",
    "submitline",
    "workdir",
    "admincomment",
    "systemcomment",
    "extra",
    "wckey",
    "reason",
)
_USED = (
    "jobid", "jobidraw", "cluster", "partition", "qos", "account", "group", "gid", "user", "uid", "submit", "start",
    "end", "elapsed", "elapsedraw", "exitcode", "state", "nnodes", "allocnodes", "reqnodes", "ncpus", "alloccpus",
    "reqcpus", "reqmem", "reqtres", "reqgres", "timelimit", "timelimitraw", "totalcpu", "maxrss", "jobname",
    "submitline", "dependency",
)  # fmt: skip
_DEPENDS = re.compile(r"\s(?:--dependency[=\s]|-d[=\s]*(?:after|singleton|expand))")


@dataclass(frozen=True)
class SacctLayout:
    """The columns of a dump, in lower case, and what is between them; `header` is the first line when it names them."""

    columns: tuple[str, ...]
    delimiter: str
    header: bytes | None

    def is_job(self, line: bytes) -> bool:
        """Whether a line is neither blank, nor the header (which dumps that were joined repeat), nor a rule below it."""
        return bool(line.strip()) and line != self.header and not line.startswith(b"----")

    def parse(self, line: bytes) -> Job:
        """The job or step of a line.

        Raises:
            ValueError: not a line of this dump; says why.
        """
        # What a name is encoded in does not matter: it is only compared and hashed.
        cells = line.decode("utf-8", "surrogateescape").split(self.delimiter)
        if len(cells) == len(self.columns) + 1 and not cells[-1]:
            cells.pop()
        if len(cells) < len(self.columns):
            raise ValueError(f"{len(cells)} cells where there are {len(self.columns)} columns")
        if len(cells) == len(self.columns):
            return _job(dict(zip(self.columns, cells, strict=True)))
        return self._parse_longer(cells)

    def _parse_longer(self, cells: list[str]) -> Job:
        """The separator is in a name: take the only column that may hold it and leaves all others readable."""
        more = len(cells) - len(self.columns)
        for name in _FREE_TEXT:
            if name in self.columns:
                at = self.columns.index(name)
                joined = self.delimiter.join(cells[at : at + more + 1])
                try:
                    return _job(dict(zip(self.columns, [*cells[:at], joined, *cells[at + more + 1 :]], strict=True)))
                except ValueError:
                    continue
        raise ValueError(f"{len(cells)} cells where there are {len(self.columns)} columns")


def read_sacct_layout(path: Path, delimiter: str, columns: Sequence[str]) -> SacctLayout:
    """The columns of a dump: as given, from its first line, or from a file COLUMNS.txt beside it.

    Raises:
        UsageError: an empty file, no columns, a column twice, or one missing that is needed.
    """
    with LineReader(path) as lines:
        first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise UsageError(f"{path}: the file is empty; it needs jobs, as `sacct --parsable2` writes them")
    cells = [cell.strip().lower() for cell in first.decode("utf-8", "replace").split(delimiter)]
    header = first if len(set(cells) & set(_USED)) >= min(3, len(cells)) and "state" in cells else None
    beside = path.parent / COLUMNS_FILE
    if header is not None:
        names = cells[:-1] if not cells[-1] else cells
        source = f"{path}, its header"
    elif columns:
        names, source = [name.strip().lower() for name in columns], "--columns"
    elif beside.is_file():
        names, source = columns_of(beside), str(beside)
    else:
        raise UsageError(
            f"{path}: the first line is no header (no column 'State' in it, split at {delimiter!r}); name the columns "
            f"by --columns or in a file {beside}, or the separator by --delimiter"
        )
    _check_columns(names, source)
    if header is None and len(cells) < len(names):
        raise UsageError(f"{path}: the first line has {len(cells)} cells, {source} names {len(names)} columns")
    return SacctLayout(tuple(names), delimiter, header)


def columns_of(path: Path) -> list[str]:
    """The names in a file, separated by |, commas, blanks or line ends.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not readable as a list of columns: {error}") from None
    return [name.lower() for name in re.split(r"[|,\s]+", text) if name]


def _check_columns(names: Sequence[str], source: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1} & set(_USED))
    if twice:
        raise UsageError(f"{source}: column {twice[0]!r} is there twice; name each once")
    for options in (("jobid", "jobidraw"), ("user", "uid"), ("submit",), ("state",)):
        if not set(options) & set(names):
            raise UsageError(
                f"{source}: no column {' or '.join(options)}; there are: {', '.join(names)}; ask sacct for it by --format"
            )


def _job(cells: dict[str, str]) -> Job:
    cell = {name: cells.get(name, "").strip() for name in _USED}
    job_id = cell["jobidraw"] or cell["jobid"]
    if not job_id[:1].isdigit():
        raise ValueError(f"{job_id[:40]!r} is no job number")
    base, _, step = job_id.partition(".")
    key = f"{cell['cluster']}/{base}"
    state = state_number(cell["state"])
    cpu_time, memory = duration_seconds(cell["totalcpu"]), used_megabytes(cell["maxrss"])
    if step or "." in cell["jobid"]:
        ended = (NAN, NAN, NAN, NAN, cpu_time, memory, NAN, NAN)
        return Job(key, True, NAN, NAN, 0.0, state, "", (), (), ended)
    submit, start, end = time_seconds(cell["submit"]), time_seconds(cell["start"]), time_seconds(cell["end"])
    if math.isnan(submit):
        raise ValueError("the time of submission is unknown")
    tres = resources(cell["reqtres"])
    cpus, nodes = number(cell["reqcpus"] or tres.get("cpu", "")), number(cell["reqnodes"] or tres.get("node", ""))
    asked = requested_megabytes(cell["reqmem"], cpus, nodes)
    request = (
        cpus,
        nodes,
        asked if not math.isnan(asked) else requested_megabytes(tres.get("mem", ""), cpus, nodes),
        number(cell["timelimitraw"]) * 60 if cell["timelimitraw"].isdecimal() else duration_seconds(cell["timelimit"]),
        gpus(tres, cell["reqgres"]),
        float("_" in cell["jobid"]),
        float(bool(cell["dependency"]) or bool(_DEPENDS.search(cell["submitline"]))),
    )
    elapsed = number(cell["elapsedraw"]) if cell["elapsedraw"] else duration_seconds(cell["elapsed"])
    allocated = number(cell["alloccpus"] or cell["ncpus"]), number(cell["allocnodes"] or cell["nnodes"])
    ended = (elapsed, max(0.0, start - submit), *exit_status(cell["exitcode"]), cpu_time, memory, *allocated)
    user = cell["user"] or cell["uid"]
    names = (user, cell["group"] or cell["gid"], *(cell[name] for name in ("account", "partition", "qos", "jobname")))
    owner = f"{cell['cluster']}/{user}" if user else ""
    return Job(key, False, submit, end, 0.0, state, owner, names, request, ended)
