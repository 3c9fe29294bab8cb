"""Fixtures for all tests: an empty working directory without the user's own configuration, and the CLI called in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from hpcdl.cli import main


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Hpcdl = Callable[..., Result]


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; no HPCDL_* or SBATCH_* variable and no user file reaches the test."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in list(os.environ):
        if name.startswith(("HPCDL_", "SBATCH_", "SLURM_")):
            monkeypatch.delenv(name)
    return folder


@pytest.fixture
def hpcdl(workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Hpcdl:
    """Call the command line in this process, in the empty working directory."""

    def call(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["hpcdl", *map(str, arguments)])
        try:
            main()
            code: int | str | None = 0
        except SystemExit as end:
            code = end.code
        captured = capfd.readouterr()
        return Result(int(code or 0), captured.out, captured.err)

    return call
