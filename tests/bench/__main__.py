"""`make bench`: the figures of docs/benchmarks.md. Medians of several rounds; what is compared runs in turn, in the same rounds.

python -m tests.bench            everything
python -m tests.bench startup    one part (startup, throughput, interruptions, preprocess, loading)

The last two make scenes of up to 20,000² pixels and data sets of 4 GB in each loader's format: 35 GB of disk, kept when
HPCDL_BENCH_DATA names a folder for them, and most of an hour.
"""

from __future__ import annotations

import sys

from tests.bench import interruptions, loading, preprocess, startup, throughput

PARTS = {
    "startup": startup.main,
    "throughput": throughput.main,
    "interruptions": interruptions.main,
    "preprocess": preprocess.main,
    "loading": loading.main,
}

if __name__ == "__main__":
    wanted = sys.argv[1:] or list(PARTS)
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        sys.exit(f"unknown part {unknown[0]!r}; known: {', '.join(PARTS)}")
    for name in wanted:
        PARTS[name]()
