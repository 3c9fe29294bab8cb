"""How long the login node's commands take, whole processes, against what their library alone costs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from tests.bench.rounds import measure, show

COMMANDS = {
    "import typer": ["-c", "import typer"],
    "hpcdl --help": ["-m", "hpcdl", "--help"],
    "hpcdl submit unet --dry-run": ["-m", "hpcdl", "submit", "unet", "--dry-run"],
}
GOALS = {"hpcdl --help": "≤ 1.5", "hpcdl submit unet --dry-run": "≤ 2.5"}


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:

        def timed(arguments: list[str]) -> Callable[[], float]:
            def run() -> float:
                start = time.perf_counter()
                subprocess.run([sys.executable, *arguments], cwd=folder, stdout=subprocess.DEVNULL, check=True)
                return (time.perf_counter() - start) * 1000

            return run

        runs = {name: timed(arguments) for name, arguments in COMMANDS.items()}
        measure(runs, rounds=2)  # fill the page cache
        show("Start of a command", "ms", measure(runs, rounds=15), "import typer", GOALS)
