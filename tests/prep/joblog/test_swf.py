from __future__ import annotations

import math

import pytest

from hpcdl.prep.joblog.record import ENDED, REQUEST, STATES
from hpcdl.prep.joblog.swf import looks_like_swf, read_swf_layout

HEAD = "; Version: 2.2\n; UnixStartTime: 1272639895\n; TimeZoneString: Asia/Tokyo\n;\n"
LINE = "  9   1877   1931 2592  128  10.5  64  256 3600 1024  1   2   3  4  1 -1 8 -1"


def test_a_line_by_the_standard(tmp_path):
    path = tmp_path / "x.swf"
    path.write_text(HEAD + LINE)
    assert looks_like_swf(path)
    layout = read_swf_layout(path)
    job = layout.parse(LINE.encode())
    assert job.submit == 1272639895 + 1877
    assert job.end == job.submit + 1931 + 2592
    assert job.zone_s == 9 * 3600
    assert STATES[job.state] == "COMPLETED"
    assert job.names == ("2", "3", "", "", "1", "4")
    request, ended = dict(zip(REQUEST, job.request, strict=True)), dict(zip(ENDED, job.ended, strict=True))
    assert (request["cpus"], request["timelimit_s"], request["memory_mb"], request["dependency"]) == (256, 3600, 256, 1)
    assert (ended["elapsed_s"], ended["wait_s"], ended["alloc_cpus"], ended["cpu_time_s"]) == (2592, 1931, 128, 1344)
    assert ended["max_rss_mb"] == 8


def test_what_is_unknown(tmp_path):
    path = tmp_path / "x.swf"
    path.write_text(LINE)
    assert looks_like_swf(path)
    layout = read_swf_layout(path)
    job = layout.parse(b"9 5 -1 -1 -1 -1 -1 -1 -1 -1 5 -1 -1 -1 -1 -1 -1 -1")
    assert STATES[job.state] == "CANCELLED"
    assert job.submit == 5
    assert math.isnan(job.end)
    assert job.owner == ""
    assert math.isnan(job.request[0])
    assert layout.parse(b"9 5 1 1 1 1 1 1 1 1 3 1 1 1 1 1 -1 -1").is_step
    path.write_text("; TimeZoneString: Mars/Base\n; UnixStartTime: x\n" + LINE)
    assert read_swf_layout(path).start is None
    path.write_text("jobid|state\n")
    assert not looks_like_swf(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2 3", "3 fields; a line of SWF has 18"),
        (LINE.replace("3600", "1h"), "1h"),
        (LINE.replace(" 1   2   3", " 7   2   3"), "status '7'"),
        (LINE.replace("1877", "-1"), "submission is unknown"),
    ],
)
def test_lines_that_cannot_be_read_say_why(tmp_path, line, message):
    path = tmp_path / "x.swf"
    path.write_text(HEAD)
    layout = read_swf_layout(path)
    assert not layout.is_job(b" ; comment")
    with pytest.raises(ValueError, match=message):
        layout.parse(line.encode())
