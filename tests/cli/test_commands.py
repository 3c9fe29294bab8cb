from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hpcdl.cli import FOLDER, spread
from tests.conftest import Hpcdl

COMMANDS = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))
HEAVY = ("torch", "horovod", "dask", "distributed", "h5py", "numpy", "rasterio", "matplotlib", "tensorboard")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(hpcdl: Hpcdl, command: str) -> None:
    result = hpcdl(command, "--help")
    assert result.code == 0
    assert "Example: hpcdl" in " ".join(result.out.split())


def test_help_lists_all_commands(hpcdl: Hpcdl) -> None:
    text = hpcdl("--help").out
    assert all(f"\n  {command} " in text for command in COMMANDS)


def test_version_and_unknown_command(hpcdl: Hpcdl) -> None:
    assert hpcdl("--version").out.startswith("hpcdl 0.")
    result = hpcdl("submitt")
    assert result.code == 2
    assert "No such command" in result.err


@pytest.mark.parametrize(
    "command", [["--help"], ["submit", "unet", "--dry-run"], ["status"], ["preprocess", "landcover", "--help"]]
)
def test_the_login_node_imports_nothing_heavy(workdir: Path, command: list[str]) -> None:
    code = f"import sys; sys.argv = ['hpcdl'] + {command!r}\nfrom hpcdl.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--images", "a", "b", "--out", "c"], ["--images", "a", "--images", "b", "--out", "c"]),
        (["run", "--images", "a", "--images", "b c"], ["run", "--images", "a", "--images", "b c"]),
        (["--out", "c", "d"], ["--out", "c", "d"]),
    ],
)
def test_an_unquoted_glob_works(given: list[str], meant: list[str]) -> None:
    assert spread(given) == meant


def test_debug_shows_the_traceback(workdir: Path) -> None:
    command = [sys.executable, "-m", "hpcdl"]
    plain = subprocess.run([*command, "cancel", "nothing"], capture_output=True, text=True, check=False)
    debug = subprocess.run([*command, "--debug", "cancel", "nothing"], capture_output=True, text=True, check=False)
    assert "Traceback" not in plain.stderr
    assert "no run or job 'nothing' in runs/; newest runs: none yet" in plain.stderr
    assert "Traceback" in debug.stderr


def test_show_tells_the_settings_as_the_configuration_has_them(hpcdl: Hpcdl) -> None:
    answer = json.loads(hpcdl("show", "unet", "--json").out)
    settings = {row["name"]: row for row in answer["settings"]}
    assert settings["width"]["default"] == 32  # of configs/architectures/unet.yaml; the job file says 64
    assert settings["norm"]["allowed"] == "one of none, batch, group"
    assert "optimizer.lr" in hpcdl("show", "unet").out
