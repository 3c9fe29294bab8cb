from __future__ import annotations

import math

import pytest

from hpcdl.errors import UsageError
from hpcdl.prep.joblog.record import ENDED, REQUEST, STATES
from hpcdl.prep.joblog.sacct import read_sacct_layout
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

HEADER = "JobID|JobIDRaw|User|Account|Partition|QOS|JobName|Submit|Start|End|State|ExitCode|ReqCPUS|ReqMem|Timelimit"
ROW = "7|7|ann|acc|gpu|high|train|2024-05-01T10:00:00|2024-05-01T10:01:00|2024-05-01T11:01:00|COMPLETED|0:0|4|2Gc|1-02:00:00"


def layout_of(tmp_path, text, columns=(), delimiter="|"):
    path = tmp_path / "dump.txt"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    return read_sacct_layout(path, delimiter, columns)


def test_values():
    assert duration_seconds("1-06:30:15") == 86400 + 6 * 3600 + 30 * 60 + 15
    assert duration_seconds("05:35") == 335
    assert duration_seconds("00:01.250") == 1.25
    assert math.isnan(duration_seconds("Partition_Limit"))
    assert math.isnan(duration_seconds("UNLIMITED"))
    assert time_seconds("1970-01-02T00:00:01") == 86401
    assert time_seconds("1700000000") == 1700000000
    assert math.isnan(time_seconds("Unknown"))
    assert exit_status("1:9") == (1, 9)
    assert number("4K") == 4000
    assert used_megabytes("2048K") == 2
    assert used_megabytes("1048576") == 1
    for text, wanted in (("4000Mn", 8000), ("2Gc", 8192), ("16G", 16384), ("512M", 512), ("1T", 1024**2), ("0n", None)):
        found = requested_megabytes(text, cpus=4, nodes=2)
        assert found == wanted or (wanted is None and math.isnan(found))
    assert requested_megabytes("2147486448Mn", cpus=8, nodes=1) == 22400  # 2800 MB a CPU, marked by the highest bit
    assert requested_megabytes("62.50Gn", cpus=8, nodes=math.nan) == 64000
    assert gpus(resources("cpu=8,mem=1G,gres/gpu=2,gres/gpu:a100=2"), "") == 2
    assert gpus(resources("gres/gpu:a100=1,gres/gpu:v100=2"), "") == 3
    assert gpus({}, "gpu:a100:4(S:0)") == 4
    for function, text in ((duration_seconds, "soon"), (exit_status, "x"), (used_megabytes, "much"), (number, "-1")):
        with pytest.raises(ValueError):  # noqa: PT011
            function(text)


def test_states():
    for text in ("CANCELLED by 1234", "CANCELLED", "cancelled", "CANCELLED+"):
        assert STATES[state_number(text)] == "CANCELLED"
    assert STATES[state_number("OUT_OF_ME+")] == "OUT_OF_MEMORY"
    for text in ("", "DONE", "RE+"):
        with pytest.raises(ValueError, match="no state"):
            state_number(text)


def test_a_job_with_a_header(tmp_path):
    layout = layout_of(tmp_path, f"\ufeff{HEADER}\r\n{ROW}\r\n")
    assert not layout.is_job(HEADER.encode())
    assert not layout.is_job(b"  ")
    job = layout.parse(ROW.encode())
    assert job.names == ("ann", "", "acc", "gpu", "high", "train")
    assert job.end - job.submit == 3660
    request, ended = dict(zip(REQUEST, job.request, strict=True)), dict(zip(ENDED, job.ended, strict=True))
    assert (request["cpus"], request["memory_mb"], request["timelimit_s"], request["array"]) == (4, 8192, 93600, 0)
    assert math.isnan(request["nodes"])
    assert (ended["wait_s"], ended["exit_code"]) == (60, 0)
    assert math.isnan(ended["max_rss_mb"])


def test_steps_arrays_and_unknown_times(tmp_path):
    layout = layout_of(tmp_path, f"{HEADER}|MaxRSS|TotalCPU\n")
    for name in ("7.batch", "7.extern", "7.0", "7+1.0", "7_3.batch"):
        step = layout.parse(f"{name}|{name}||||||Unknown|Unknown|Unknown|FAILED|1:0|4|||300K|00:10".encode())
        assert step.is_step
        assert step.key.endswith(name.rpartition(".")[0])
    pending = ROW.replace("7|7|", "7_[1-9]|7|", 1).replace("2024-05-01T10:01:00|2024-05-01T11:01:00", "Unknown|Unknown")
    job = layout.parse(f"{pending.replace('COMPLETED', 'PENDING')}||".encode())
    assert job.request[REQUEST.index("array")] == 1
    assert math.isnan(job.end)
    assert job.key == "/7"


def test_the_separator_in_a_name(tmp_path):
    layout = layout_of(tmp_path, HEADER + "\n")
    for name in ("a|b", "|", "x|COMPLETED|y", "||||"):
        job = layout.parse(ROW.replace("train", name).encode())
        assert job.names[-1] == name
        assert STATES[job.state] == "COMPLETED"
    last = layout_of(tmp_path, "JobID|User|State|Submit|JobName\n")
    assert last.parse(b"1|u|FAILED|2024-05-01T10:00:00|a|b|c").names[-1] == "a|b|c"
    two = layout_of(tmp_path, "JobID|Comment|State|Submit|JobName|User\n")
    assert two.parse(b"1|it|was|FAILED|2024-05-01T10:00:00|name|u").names[-1] == "name"
    with pytest.raises(ValueError, match="17 cells where there are 15 columns"):
        layout.parse((ROW + "|x|y").encode())
    assert layout.parse((ROW + "|").encode()).key == "/7"  # as sacct -p writes it


def test_names_in_any_encoding(tmp_path):
    layout = layout_of(tmp_path, HEADER + "\n")
    job = layout.parse(ROW.encode().replace(b"train", b"gr\xf6\xdfe"))
    assert job.names[-1] == b"gr\xf6\xdfe".decode("utf-8", "surrogateescape")


def test_columns_without_a_header(tmp_path):
    with pytest.raises(UsageError, match=r"the first line is no header.*--columns"):
        layout_of(tmp_path, ROW + "\n")
    by_option = layout_of(tmp_path, ROW + "\n", HEADER.split("|"))
    (tmp_path / "COLUMNS.txt").write_text(HEADER.replace("|", "\n"))
    assert layout_of(tmp_path, ROW + "\n").columns == by_option.columns
    with pytest.raises(UsageError, match="has 15 cells, --columns names 16 columns"):
        layout_of(tmp_path, ROW + "\n", [*HEADER.split("|"), "MaxRSS"])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("JobID|User|State|Start", "no column submit"),
        ("Start|User|State|Submit", "no column jobid or jobidraw"),
        ("JobID|State|Submit", "no column user or uid"),
        ("JobID|State|State|User|Submit", "column 'state' is there twice"),
        ("", "the file is empty"),
    ],
)
def test_columns_that_do_not_do(tmp_path, header, message):
    with pytest.raises(UsageError, match=message):
        layout_of(tmp_path, header + "\n")


def test_another_separator(tmp_path):
    layout = layout_of(tmp_path, HEADER.replace("|", "^") + "\n", delimiter="^")
    assert layout.parse(ROW.replace("|", "^").encode()).names[0] == "ann"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("COMPLETED", "DONE", "'DONE' is no state"),
        ("2024-05-01T10:00:00", "Unknown", "time of submission is unknown"),
        ("2024-05-01T10:00:00", "May 1", "May 1"),
        ("7|7|", "x|x|", "'x' is no job number"),
        ("1-02:00:00", "long", "'long' is no duration"),
        ("|1-02:00:00", "", "14 cells where there are 15 columns"),
    ],
)
def test_lines_that_cannot_be_read_say_why(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=message):
        layout_of(tmp_path, HEADER + "\n").parse(ROW.replace(old, new, 1).encode())
