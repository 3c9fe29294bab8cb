from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from hpcdl.snapshot import changes_since, write_snapshot


@pytest.fixture
def code(workdir: Path) -> Path:
    folder = workdir / "run" / "code"
    folder.parent.mkdir()
    write_snapshot(folder, None)
    return folder


def git(*arguments: str) -> str:
    who = ["-c", "user.name=Me", "-c", "user.email=me@example.org"]
    return subprocess.run(["git", *who, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def commit(text: str) -> str:
    Path("file").write_text(text)
    git("add", "file")
    git("commit", "--message", text)
    return git("rev-parse", "HEAD")


def test_nothing_has_changed(code: Path) -> None:
    assert changes_since(code) == []


def test_packages_and_python(code: Path) -> None:
    lines = (code / "env.txt").read_text().splitlines()
    (numpy,) = [line for line in lines if line.startswith("numpy==")]
    others = [line for line in lines if not line.startswith(("numpy==", "#"))]
    (code / "env.txt").write_text("\n".join(["# Python 3.1.4 on Multics", "numpy==0.9", "gone==1.0", *others]))
    assert changes_since(code) == [
        f"Python: 3.1.4 on Multics → {lines[0].removeprefix('# Python ')}",
        "gone: 1.0 → not there",
        f"numpy: 0.9 → {numpy.removeprefix('numpy==')}",
    ]


@pytest.mark.parametrize("name", ["git.json", "env.txt"])
def test_a_snapshot_that_is_not_there(code: Path, name: str) -> None:
    (code / name).unlink()
    assert changes_since(code) == ["what it was submitted with is no longer known (code/git.json, code/env.txt)"]


@pytest.mark.parametrize(("name", "content"), [("git.json", "{"), ("env.txt", "")])
def test_a_damaged_snapshot(code: Path, name: str, content: str) -> None:
    (code / name).write_text(content)
    assert changes_since(code) == ["what it was submitted with is no longer known (code/git.json, code/env.txt)"]


def test_the_commit(workdir: Path) -> None:
    git("init", "--quiet")
    first = commit("one")
    write_snapshot(workdir / "code", None)
    assert json.loads((workdir / "code" / "git.json").read_text())["commit"] == first
    assert changes_since(workdir / "code") == []
    second = commit("two")
    assert changes_since(workdir / "code") == [f"git commit: {first[:12]} → {second[:12]}"]


def test_called_from_outside_the_repository(workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("init", "--quiet")
    commit("one")
    write_snapshot(workdir / "code", None)
    monkeypatch.chdir(tmp_path)
    assert changes_since(workdir / "code") == []
