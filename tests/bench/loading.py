"""Samples a second of loaders over the same samples: hpcdl, its peers, and copying memory. See tests/bench/peers.py.

Each loader runs in one process of its own, one after the other, several rounds; the page cache is warm, then (as root) cold.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from tests.bench.peers import CASES
from tests.bench.rounds import show

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
OWN, OTHERS = ("hpcdl", "h5py", "memcpy"), ("webdataset", "streaming", "litdata")
ROUNDS = 3
GOALS = {
    "chips": "≥ 8 × the best peer, ≥ 0.7 of the bound",
    "digits": "≥ 20 × the best peer",
    "tokens": "≥ 8 × the best peer",
}


def main() -> None:
    """Print a table a case, warm and cold; HPCDL_BENCH_DATA keeps the data (15 GB) for the next time."""
    folder = Path(os.environ.get("HPCDL_BENCH_DATA", ROOT / "bench-data"))
    loaders = [*OWN, *(OTHERS if PEERS.is_file() else ())]
    if not PEERS.is_file():
        print("peers are not installed: `make bench-peers`", file=sys.stderr)
    try:
        for case in CASES:
            for loader in loaders:
                if loader != "memcpy" and not (folder / case / loader).exists():
                    _run(loader, case, folder, "write")
            warm: dict[str, list[float]] = {loader: [] for loader in loaders}
            for _ in range(ROUNDS):
                for loader in loaders:
                    # The first epoch of a process opens files; the median tells of the others.
                    warm[loader].append(statistics.median(_run(loader, case, folder, "read")))
            _show(f"{case}, page cache warm", warm, GOALS[case])
            if os.geteuid() == 0:
                cold: dict[str, list[float]] = {loader: [] for loader in loaders if loader != "memcpy"}
                for loader in cold:
                    _drop_caches()
                    cold[loader].append(_run(loader, case, folder, "read", "1")[0])
                _show(f"{case}, page cache cold, first epoch", cold, "")
    finally:
        if "HPCDL_BENCH_DATA" not in os.environ:
            shutil.rmtree(folder, ignore_errors=True)


def _show(title: str, figures: dict[str, list[float]], goal: str) -> None:
    peers = {name: statistics.median(values) for name, values in figures.items() if name not in ("hpcdl", "memcpy")}
    best = max(peers, key=lambda name: peers[name])
    show(f"Loading {title}", "samples/s", figures, best, {"hpcdl": goal})
    if "memcpy" in figures:
        bound = statistics.median(figures["hpcdl"]) / statistics.median(figures["memcpy"])
        print(f"\nhpcdl is at {bound:.2f} of copying memory")


def _run(loader: str, case: str, folder: Path, what: str, *more: str) -> list[float]:
    python = sys.executable if loader in OWN else str(PEERS)
    command = [python, "-m", "tests.bench.peers", loader, case, str(folder / case / loader), what, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    return [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("rate ")]


def _drop_caches() -> None:
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


if __name__ == "__main__":
    main()
