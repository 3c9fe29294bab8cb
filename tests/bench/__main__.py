"""`make bench`: the figures of docs/benchmarks.md. Medians of several rounds; what is compared runs in turn, in the same rounds.

python -m tests.bench            everything
python -m tests.bench startup    one part (startup, throughput, interruptions)
"""

from __future__ import annotations

import sys

from tests.bench import interruptions, startup, throughput

PARTS = {"startup": startup.main, "throughput": throughput.main, "interruptions": interruptions.main}

if __name__ == "__main__":
    wanted = sys.argv[1:] or list(PARTS)
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        sys.exit(f"unknown part {unknown[0]!r}; known: {', '.join(PARTS)}")
    for name in wanted:
        PARTS[name]()
