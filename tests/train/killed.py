"""`python -m tests.train.killed FOLDER SEED KILLS`: a training that is killed again and again, each time around a checkpoint.

Run once, as a process of its own: it imports torch, and then forks a child for each training before any thread exists. Ends with
code 0 when after every kill the newest checkpoint was good and recent, and when the training came to what one without kills does.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # optimizers import it: done once, before the forks, it costs no child a second
import torch.utils.tensorboard

from hpcdl.shards.manifest import Manifest
from hpcdl.train import checkpoint
from tests.datasets import write_blobs
from tests.train.trainings import digest, lines, newest, numbers, start

VALUES: dict[str, Any] = {
    "width": 256, "noise": True, "dropout": 0.2, "ema": 0.9, "val_every": 2, "log_every": 2, "epochs": 100_000,
    "schedule.name": "constant", "schedule.warmup": 0.0,
}  # fmt: skip


def main(folder: Path, seed: int, kills: int) -> None:
    """Kill, look, and go on; then come to an end and compare."""
    manifest = write_blobs(folder / "data", {"train": 22, "val": 6})
    generator = random.Random(seed)
    committed = step = hits = 0
    for number in range(kills):
        every, asynchronous = generator.choice((1, 1, 2, 3)), number % 4 != 0
        values = {"checkpoint.steps": every, "checkpoint.asynchronous": asynchronous, "checkpoint.keep": 1 + number % 2}

        def train(tell: Callable[[str], None], values: dict[str, Any] = values) -> None:
            announce_writes(tell)
            start(folder / "run", manifest, **VALUES, **values).train()

        # Words alternate: after an odd number of them a write is under way.
        wait_for, longest = generator.choice((0, 1, 1, 1, 2, 3, 3, 5)), generator.choice((0.001, 0.004, 0.02))
        told = kill(train, folder / "log", wait_for, generator.uniform(0, longest))
        begun = [int(word[1:]) for word in told if word[0] == "b"]
        committed = max([committed, *(int(word[1:]) for word in told if word[0] == "c")])
        hits += bool(told) and told[-1][0] == "b"
        found: list[str] = []
        path = checkpoint.newest_good(folder / "run/checkpoints", found.append)
        where = f"kill {number} (every {every}, asynchronous {asynchronous}): told {told}, found {path}, {found}"
        assert not found, where
        if not committed:
            continue
        assert path is not None, where
        before, step = step, checkpoint.step_of(path)
        assert checkpoint.load(path)["position"]["step"] == step, where
        assert "random" in checkpoint.load_rank(path, 0), where
        assert max([committed, before, *(number - every for number in begun)]) <= step, where
        assert step <= max([committed, before, *begun]), where
    assert "damaged" not in (folder / "log").read_text()
    assert step > 0
    print(f"{kills} kills, {hits} of them while a checkpoint was written; {step} steps", flush=True)
    # In this process from here on: trainings start threads.
    ends = {name: finish(folder / name, manifest, step + 2) for name in ("run", "whole")}
    assert ends["run"] == ends["whole"], f"after {step} steps"
    left = [path.name for path in (folder / "run/checkpoints").iterdir() if path.name.startswith((".", "damaged"))]
    assert left == []


def kill(train: Callable[[Callable[[str], None]], None], log: Path, wait_for: int, seconds: float) -> list[str]:
    """Train in a child, and kill it so long after so many words were told; gives all words."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:

        def tell(word: str) -> None:
            os.write(writing, f"{word}\n".encode())

        try:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
            train(tell)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, buffering=1) as words:
        told = [words.readline().strip() for _ in range(wait_for)]
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        told += [line.strip() for line in words if line.endswith("\n")]
    assert os.WIFSIGNALED(status), "the training ended by itself"
    return [word for word in told if word]


def announce_writes(tell: Callable[[str], None]) -> None:
    """Tell `b` and the step when a write begins, `c` when it has been committed."""
    write = checkpoint.write

    def announced(folder: Path, step: int, *arguments: Any) -> int:
        tell(f"b{step}")
        num_bytes = write(folder, step, *arguments)
        tell(f"c{step}")
        return num_bytes

    checkpoint.write = announced


def finish(folder: Path, manifest: Manifest, num_steps: int) -> tuple[Any, ...]:
    """Train to the end, undisturbed; what came of it."""
    trainer = start(folder, manifest, **VALUES, max_steps=num_steps)
    assert trainer.train()
    newest(folder)
    assert [line["step"] for line in lines(folder)] == [*range(2, num_steps, 2), num_steps]
    return digest(trainer), [{**line, "num_steps": 0} for line in numbers(folder)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
