from __future__ import annotations

import stat
import sys

import pytest

from hpcdl.errors import FailedError, TimeOutError, UsageError
from hpcdl.prep.joblog.live_sacct import fetch

FAKE = f"""#!{sys.executable}
import os, sys, time
if "--helpformat" in sys.argv:
    print("Account JobID JobIDRaw Submit Start End State User JobName MaxRSS")
    sys.exit()
assert os.environ["SLURM_TIME_FORMAT"] == "standard" and "SACCT_FORMAT" not in os.environ
{{body}}
"""


@pytest.fixture
def sacct(tmp_path, monkeypatch):
    """Puts a program named sacct on PATH that does what it is told."""

    def make(body):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "sacct"
        program.write_text(FAKE.format(body=body))
        program.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("SACCT_FORMAT", "jobid")
    return make


def test_the_answer_is_kept_in_a_private_file(sacct, tmp_path):
    sacct("print('\\n'.join(sys.argv[1:]))")
    path = tmp_path / "new folder" / "jobs; rm -rf x.txt"
    fetch(path, "now-2days", "now", 20)
    words = path.read_text().splitlines()
    assert words[:3] == ["--parsable2", "--allusers", "--duplicates"]
    # Only columns that this release has, the name last.
    assert words[3] == "--format=JobID,JobIDRaw,Account,User,Submit,Start,End,State,MaxRSS,JobName"
    assert words[4:] == ["--starttime=now-2days", "--endtime=now"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_goes_wrong_is_told_and_leaves_no_file(sacct, tmp_path, monkeypatch):
    path = tmp_path / "jobs.txt"
    sacct("sys.exit('sacct: error: Slurm accounting storage is disabled')")
    with pytest.raises(
        FailedError, match="sacct ended with code 1: sacct: error: Slurm accounting storage is disabled"
    ):
        fetch(path, "now-2days", "now", 20)
    sacct("time.sleep(30)")
    with pytest.raises(TimeOutError, match=r"did not end within 1 s; .*--since"):
        fetch(path, "now-2days", "now", 1)
    with pytest.raises(UsageError, match="since '-x' is no time"):
        fetch(path, "-x", "now", 20)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no sacct on PATH"):
        fetch(path, "now-2days", "now", 20)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bin"]
