"""Samples a second of U-Net training on this machine: hpcdl's loop against a bare PyTorch loop, two ranks against two lone ones.

The network is a U-Net of 32 maps and depth 3 without normalisation, on chips of 4 × 128 × 128, 4 samples a rank and step, one
thread a rank. Each process warms up, then counts its steps over a fixed time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.rounds import measure, show
from tests.datasets import write_blobs

MPIRUN = ["mpirun", "--bind-to", "none", "--oversubscribe"]
GOALS = {
    "hpcdl, one rank": "≥ 0.97 of the bare loop",
    "hpcdl, two Horovod ranks": "≥ 0.9 of two lone ones, and not behind DDP",
}


def main() -> None:
    """Print both tables."""
    from hpcdl.cluster import load_cluster

    local = {**os.environ, **load_cluster("local").environment, "OMP_NUM_THREADS": "1"}
    local["PATH"] = f"{Path(sys.executable).parent}:{local['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        write_blobs(Path(folder) / "data", {"train": 64}, chip_px=128, bands=4, per_shard=64)

        def start(
            mode: str, prefix: list[str], number: int = 0, more: dict[str, str] | None = None
        ) -> subprocess.Popen[str]:
            command = [*prefix, sys.executable, "-m", "tests.bench.worker", mode, folder, str(number)]
            return subprocess.Popen(command, env={**local, **(more or {})}, stdout=subprocess.PIPE, text=True)

        def rate(*started: subprocess.Popen[str]) -> float:
            outputs = [process.communicate()[0] for process in started]
            assert all(process.returncode == 0 for process in started)
            return sum(
                float(line.split()[1]) for text in outputs for line in text.splitlines() if line.startswith("rate ")
            )

        alone = {
            "bare loop, one process": lambda: rate(start("bare", [])),
            "hpcdl, one rank": lambda: rate(start("single", [])),
        }
        show("Training, one rank", "samples/s", measure(alone), "bare loop, one process", GOALS)

        two = [*MPIRUN, "-n", "2"]
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
        pair = {
            "two unconnected hpcdl ranks": lambda: rate(start("single", [], 0), start("single", [], 1)),
            "hpcdl, two Horovod ranks": lambda: rate(start("horovod", two)),
            "the same with Horovod's own fusion": lambda: rate(start("fused", two)),
            "hpcdl, two torch.distributed ranks": lambda: rate(start("torch", two, more=address)),
            "bare DistributedDataParallel over gloo": lambda: rate(start("ddp", two, more=address)),
        }
        if shutil.which("mpirun", path=local["PATH"]) is None:
            print("no mpirun on PATH: two ranks not measured")
            return
        show("Training, two ranks", "samples/s", measure(pair), "two unconnected hpcdl ranks", GOALS)
