"""What code a run was made with: the job file, the git commit, uncommitted changes and the installed packages."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

GIT_TIMEOUT_S = 10
MAX_PATCH_BYTES = 5_000_000


def digest(path: Path) -> str:
    """sha256 of a small file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_snapshot(folder: Path, job_file: Path | None) -> None:
    """Fill a run's code/ folder: the job file, git.json, uncommitted.patch and env.txt."""
    folder.mkdir(parents=True)
    if job_file is not None:
        shutil.copyfile(job_file, folder / job_file.name)
    state, patch = _git(Path.cwd())
    (folder / "git.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    if patch:
        (folder / "uncommitted.patch").write_bytes(patch)
    (folder / "env.txt").write_text("\n".join(_environment()) + "\n", encoding="utf-8")


def changes_since(folder: Path) -> list[str]:
    """What a run's code/ folder says of the commit and the packages that is not so any more, a line each."""
    try:
        before = json.loads((folder / "git.json").read_text(encoding="utf-8"))
        old = _versions((folder / "env.txt").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError, IndexError):
        return ["what it was submitted with is no longer known (code/git.json, code/env.txt)"]
    lines = []
    now, _ = _git(Path.cwd())
    if now.get("repository") == before.get("repository") and now["commit"] != before["commit"]:
        lines.append(f"git commit: {str(before['commit'])[:12]} → {str(now['commit'])[:12]}")
    new = _versions(_environment())
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            lines.append(f"{name}: {old.get(name, 'not there')} → {new.get(name, 'not there')}")
    return lines


def _environment() -> list[str]:
    import importlib.metadata  # takes as long as half of the command line's start

    packages = sorted({f"{entry.name}=={entry.version}" for entry in importlib.metadata.distributions()}, key=str.lower)
    return [f"# Python {platform.python_version()} on {platform.platform()}", *packages]


def _versions(lines: list[str]) -> dict[str, str]:
    pairs = [line.partition("==") for line in lines if "==" in line]
    return {name: version for name, _, version in pairs} | {"Python": lines[0].removeprefix("# Python ")}


def _git(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The commit that the working directory is at, and its uncommitted changes; empty outside a repository."""

    def ask(*arguments: str) -> bytes:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, check=True, timeout=GIT_TIMEOUT_S).stdout

    try:
        commit = ask("rev-parse", "HEAD").decode().strip()
        patch = ask("diff", "HEAD", "--binary")
        origin = ask("rev-parse", "--show-toplevel").decode().strip()
    except (OSError, subprocess.SubprocessError):
        return {"commit": None}, b""
    state = {"commit": commit, "repository": origin, "uncommitted_bytes": len(patch)}
    # A patch full of data files would dwarf the run; its size is still told.
    return state, patch if len(patch) <= MAX_PATCH_BYTES else b""
