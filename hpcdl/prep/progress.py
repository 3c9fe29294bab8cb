"""What a run tells on stderr: a progress bar while it goes, a summary at its end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hpcdl.prep.shard import Written


@contextlib.contextmanager
def progress(total: int, quiet: bool) -> Iterator[Callable[[Written], None]]:
    """A function to call with each finished shard; draws a bar when stderr is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda shard: None
        return
    kept = 0
    columns = (
        TextColumn("shards"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)

        def advance(shard: Written) -> None:
            nonlocal kept
            kept += shard.kept
            bar.update(task, advance=1, description=f"kept {kept}" if kept else "")

        yield advance


def print_summary(
    folder: Path, shards: Mapping[str, Written], splits: Mapping[str, Any], lines: Sequence[str], seconds: float
) -> None:
    """Samples of each split, what was left out, and the kind's own lines."""
    kept = sum(shard.kept for shard in shards.values())
    megabytes = sum(shard.num_bytes for shard in shards.values()) / 1e6
    print(
        f"{folder}: {len(shards)} shards of {megabytes:.1f} MB in {seconds:.1f} s "
        f"(kept {kept}, wrote {len(shards) - kept})",
        file=sys.stderr,
    )
    print(f"{'split':>5} {'samples':>8} {'shards':>7} {'dropped':>8} {'buffer':>7}", file=sys.stderr)
    for split, body in splits.items():
        print(
            f"{split:>5} {body['num_samples']:>8} {len(body['shards']):>7} {body['num_dropped']:>8} "
            f"{body.get('num_buffer', 0):>7}",
            file=sys.stderr,
        )
    for line in lines:
        print(line, file=sys.stderr)
