"""What it costs to be ready for an interruption, and to come back from one; two Horovod ranks on this machine.

The network is a U-Net of 32 maps and depth 4 with moving averages: 124 MB a checkpoint. Small chips make its steps short, so that a
checkpoint every 50 steps comes more often than anybody would want it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from hpcdl.rundir import RunDir, read_lines
from tests.bench.rounds import measure, show
from tests.datasets import write_blobs

FIRST, LAST, EVERY = 10, 170, 50
SETTINGS = {
    "width": 32, "depth": 4, "norm": "batch", "augment": "none", "ema": 0.99, "batch_size": 8, "log_every": 10,
    "val_every": 0, "checkpoint.epochs": 0, "checkpoint.minutes": 0, "epochs": 1000,
}  # fmt: skip
GOALS = {"a checkpoint every 50 steps": "≥ 0.97", "resumed": "≤ 1.3"}


def main() -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_blobs(folder / "data", {"train": 64}, chip_px=32, bands=4, per_shard=64)
        number = 0

        def train(run: str, *settings: str) -> RunDir:
            """One job to its end."""
            flags = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
            flags += [word for setting in settings for word in ("--set", setting)]
            command = ["submit", "unet", "--data", "data", "--name", run, "--ntasks-per-node", "2", *flags, "--wait"]
            _hpcdl(folder, *command)
            return RunDir(folder / "runs" / run)

        def rate(every: int) -> Callable[[], float]:
            def run() -> float:
                nonlocal number
                number += 1
                lines = read_lines(
                    train(f"r{number}", f"checkpoint.steps={every}", f"max_steps={LAST + 1}").metrics_file
                )
                shutil.rmtree(folder / "runs")
                times = {line["step"]: line["time"] for line in lines if line["split"] == "train"}
                return (LAST - FIRST) * 8 / float(times[LAST] - times[FIRST])

            return run

        rates = {"no checkpoint": rate(0), "a checkpoint every 50 steps": rate(EVERY)}
        show("Training with checkpoints", "samples/s", measure(rates), "no checkpoint", GOALS)

        def fresh() -> float:
            shutil.rmtree(folder / "runs", ignore_errors=True)
            return _to_first_step(train("run", "max_steps=5"))

        def resumed() -> float:
            _hpcdl(folder, "resume", "run", "--set", "max_steps=10", "--wait")
            return _to_first_step(RunDir(folder / "runs" / "run"))

        show("Start to first step", "s", measure({"fresh": fresh, "resumed": resumed}), "fresh", GOALS)


def _to_first_step(run: RunDir) -> float:
    """Seconds from the newest attempt's begin to the end of its first step."""
    began = [event["time"] for event in run.events() if event["event"] == "began"][-1]
    ended = [line["time"] for line in read_lines(run.metrics_file) if line["split"] == "startup"][-1]
    return float(ended - began)


def _hpcdl(folder: Path, *words: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "hpcdl", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
