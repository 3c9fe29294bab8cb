"""Runs to interrupt: a U-Net with everything that could differ after a resume, paced so that there is time to interrupt it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcdl.catalog import bundled_root
from hpcdl.rundir import RunDir, read_lines
from hpcdl.train import checkpoint
from tests.datasets import write_blobs

SETTINGS = {
    "width": 4, "depth": 1, "norm": "batch", "dropout": 0.3, "jitter": 0.1, "batch_size": 8, "ema": 0.9,
    "log_every": 1, "val_every": 1, "checkpoint.epochs": 0, "checkpoint.steps": 10, "epochs": 100,
}  # fmt: skip
"""Dropout, augmentation, batch norm, moving averages and validations in mid-run."""

PACE = """
    pause_s: float = 0.0
    \"\"\"Seconds that each step is made to take longer.\"\"\"
    fail: str = ""
    \"\"\"A rank, a step, and what it does there: raise, oom, exit, hang, nan.\"\"\"
"""

FAULT = """
        import os, time
        Job.steps = getattr(Job, "steps", 0) + 1
        time.sleep(self.settings.pause_s)
        rank, step, what = (self.settings.fail or "none 0 none").split(" ")
        mine = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("SLURM_PROCID", "0"))
        if rank == mine and Job.steps == int(step):
            if what == "raise":
                raise ArithmeticError("this rank cannot go on")
            if what == "oom":
                os.kill(os.getpid(), 9)
            if what == "exit":
                os._exit(3)
            if what == "hang":
                time.sleep(3600)
        if what == "nan" and rank == mine and Job.steps == int(step):
            batch = batch.__class__({**batch.fields, "image": batch["image"].float() * float("nan")}, batch.mask, batch.draws)
"""


def write_project(folder: Path, samples: int = 40) -> None:
    """A user's folder with a small data set and the architecture `paced`."""
    write_blobs(folder / "data", {"train": samples, "val": 8})
    (folder / "jobs").mkdir()
    (folder / "configs" / "architectures").mkdir(parents=True)
    text = (bundled_root() / "jobs" / "unet.py").read_text(encoding="utf-8")
    head, sign, rest = text.partition('    """Share of each target spread over all classes."""\n')
    start = "    def training_step(self, networks: Any, batch: Batch) -> Iterator[Update]:\n"
    before, mark, after = rest.partition(start)
    (folder / "jobs" / "paced.py").write_text(head + sign + PACE + before + mark + FAULT + after, encoding="utf-8")
    settings = "".join(f"  {name}: {value}\n" for name, value in SETTINGS.items())
    (folder / "configs" / "architectures" / "paced.yaml").write_text("settings:\n" + settings, encoding="utf-8")


def weights_digest(run: Path) -> str:
    """sha256 over all weights and statistics of a run's newest checkpoint."""
    found = checkpoint.newest_good(RunDir(run).checkpoints, print)
    assert found is not None
    return f"{found.name}:{checkpoint.weights_digest(checkpoint.load(found))}"


def losses(run: Path) -> list[tuple[int, float]]:
    """Step and loss of each train line; a run that went on must repeat none and miss none."""
    return [(line["step"], line["loss"]) for line in read_lines(run / "metrics.jsonl") if line["split"] == "train"]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """Events of one kind."""
    return [event for event in RunDir(run).events() if event["event"] == kind]


def newest_line(run: Path) -> int:
    """Step of the newest train line, 0 before the first."""
    found = losses(run)
    return found[-1][0] if found else 0


def until(what: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def beats(run: Path, attempt: str = "") -> dict[int, dict[str, Any]]:
    """The beats of all ranks of an attempt, the newest one unless named."""
    began = events(run, "began")
    found = {}
    name = attempt or (began[-1]["attempt"] if began else "none")
    for path in (run / "attempts" / name).glob("beat-0*"):
        try:
            beat = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        found[beat["rank"]] = beat
    return found
