"""Preprocessing large scenes: one worker against gdalwarp, two against two unconnected runs, and memory over the size.

gdalwarp (single-threaded, bilinear, to a plain GeoTIFF on the labels' grid) only warps; hpcdl also cuts chips, brings the
labels along, writes HDF5, digests and counts. Scenes are made once and kept in HPCDL_BENCH_DATA when that is set (7 GB).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import rasterio

from tests.bench.rounds import measure, show
from tests.bench.scenes import write_scene

ROOT = Path(__file__).resolve().parents[2]
SIZES = tuple(int(size) for size in os.environ.get("HPCDL_BENCH_SIZES", "5000,10000,20000").split(","))
# The largest scene is measured once: its run takes minutes.
ROUNDS = {5000: 5, 10000: 3}
TWO_WORKERS_PX = 10000


def main() -> None:
    """Print the tables."""
    folder = Path(os.environ.get("HPCDL_BENCH_DATA", ROOT / "bench-data")) / "scenes"
    if shutil.which("gdalwarp") is None:
        sys.exit("gdalwarp is missing: apt-get install gdal-bin")
    try:
        memory = []
        for size in SIZES:
            image, labels = write_scene(folder, size)
            _read_once(image)
            peaks: list[int] = []
            runs: dict[str, Callable[[], float]] = {
                "gdalwarp, one thread": lambda image=image, labels=labels, size=size: _pixels(
                    size, _gdalwarp(image, labels, folder)
                ),
                "hpcdl, one worker": lambda image=image, labels=labels, size=size, peaks=peaks: _pixels(
                    size, _hpcdl(image, labels, folder, 1, peaks)
                ),
            }
            figures = measure(runs, ROUNDS.get(size, 1))
            goals = {"hpcdl, one worker": "ahead; goal 3 ×"}
            show(f"Preprocessing {size} × {size} × 4 uint16", "Mpixel/s", figures, "gdalwarp, one thread", goals)
            memory.append((size, max(peaks)))
            if size == TWO_WORKERS_PX:
                _two_workers(image, labels, folder, size)
        print("\n## Memory of a worker\n\n| scene | peak resident, MB |\n|---|---|")
        for size, peak in memory:
            print(f"| {size} × {size} | {peak / 1e3:.0f} |", flush=True)
    finally:
        if "HPCDL_BENCH_DATA" not in os.environ:
            shutil.rmtree(folder, ignore_errors=True)


def _two_workers(image: Path, labels: Path, folder: Path, size: int) -> None:
    def two_runs() -> float:
        started = time.perf_counter()
        both = [_start(image, labels, folder / f"out-{number}", 1) for number in range(2)]
        for process in both:
            if process.wait():
                raise SystemExit("a run failed")
        return 2 * _pixels(size, time.perf_counter() - started)

    runs = {
        "two unconnected runs of one worker": two_runs,
        "one run of two workers": lambda: _pixels(size, _hpcdl(image, labels, folder, 2, [])),
    }
    goals = {"one run of two workers": "≥ 0.9"}
    show(
        f"Two workers, {size} × {size}",
        "Mpixel/s",
        measure(runs, ROUNDS[size]),
        "two unconnected runs of one worker",
        goals,
    )


def _pixels(size: int, seconds: float) -> float:
    return size * size / 1e6 / seconds


def _gdalwarp(image: Path, labels: Path, folder: Path) -> float:
    out = folder / "warped.tif"
    out.unlink(missing_ok=True)
    with rasterio.open(labels) as dataset:
        bounds, crs, (x, y) = dataset.bounds, dataset.crs.to_string(), dataset.res
    command = ["gdalwarp", "-q", "-t_srs", crs, "-te", *map(str, bounds), "-tr", str(x), str(y), "-r", "bilinear"]
    started = time.perf_counter()
    subprocess.run([*command, str(image), str(out)], check=True)
    seconds = time.perf_counter() - started
    out.unlink()
    return seconds


def _start(image: Path, labels: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    shutil.rmtree(out, ignore_errors=True)
    # All of the scene becomes chips: one split, no buffer, no chip dropped for want of data.
    options = ["--test-fraction", "0", "--val-fraction", "0", "--min-valid", "0.01"]
    command = [
        sys.executable,
        "-m",
        "hpcdl",
        "preprocess",
        "landcover",
        "--images",
        str(image),
        "--labels",
        str(labels),
    ]
    command += [*options, "--workers", str(workers), "--out", str(out)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _hpcdl(image: Path, labels: Path, folder: Path, workers: int, peaks: list[int]) -> float:
    started = time.perf_counter()
    process = _start(image, labels, folder / "out", workers)
    peak = 0
    while process.poll() is None:
        time.sleep(0.1)
        peak = max(peak, _largest(process.pid))
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit("hpcdl preprocess failed")
    peaks.append(peak)
    return seconds


def _largest(pid: int) -> int:
    """Largest peak of resident memory, in kB, of the processes below one."""
    peak = 0
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in map(int, children):
            for line in Path(f"/proc/{child}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peak = max(peak, int(line.split()[1]))
            peak = max(peak, _largest(child))
    except (OSError, ValueError):
        return peak
    return peak


def _read_once(path: Path) -> None:
    """Into the page cache, for all alike."""
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


if __name__ == "__main__":
    main()
