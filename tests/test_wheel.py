from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT

pytestmark = pytest.mark.slow


def test_a_wheel_works_in_an_empty_folder(workdir: Path, tmp_path: Path) -> None:
    """Built and installed without network; its dependencies are those of this environment."""

    def pip(*arguments: str | Path) -> None:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)

    pip("wheel", ROOT, "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path / "wheels")
    (wheel,) = (tmp_path / "wheels").glob("hpcdl-*.whl")
    pip("install", "--no-deps", "--target", tmp_path / "site", wheel)

    def python(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
        done = subprocess.run(
            [sys.executable, "-P", *arguments], env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout

    assert python("-c", "import hpcdl; print(hpcdl.__file__)").startswith(str(tmp_path / "site"))
    assert "-m hpcdl.watch" in python("-m", "hpcdl", "submit", "unet", "--cluster", "testcluster", "--dry-run")
    assert "--legend" in python("-m", "hpcdl", "preprocess", "landcover", "--help")
    legend = "from hpcdl.raster.legend import load_legend; print(len(load_legend('nlcd').classes))"
    assert python("-c", legend) == "20\n"
