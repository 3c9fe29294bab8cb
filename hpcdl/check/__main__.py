"""`python -m hpcdl.check REQUEST.json`: check a data set; what `hpcdl data check` starts."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hpcdl.check.apart import check_distances, is_map, read_chips
from hpcdl.check.coverage import check_coverage, coverage_table
from hpcdl.check.findings import Report
from hpcdl.check.shards import check_shards
from hpcdl.errors import HpcdlError
from hpcdl.shards.manifest import Manifest, load_manifest


def main() -> int:
    """Run a request; returns the exit code: 0 when all is well, 1 when something is wrong."""
    if len(sys.argv) != 2:
        print("usage: python -m hpcdl.check REQUEST.json", file=sys.stderr)
        return 2
    try:
        request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        return _check(request)
    except HpcdlError as error:
        if os.environ.get("HPCDL_DEBUG"):
            raise
        print(f"hpcdl: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("hpcdl: interrupted", file=sys.stderr)
        return 130


def _check(request: Mapping[str, Any]) -> int:
    manifest = load_manifest(Path(request["data"]))
    report = Report()
    report.figures["data"] = str(manifest.folder)
    report.figures["num_samples"] = {split: manifest.num_samples(split) for split in manifest.splits}
    with _progress(sum(map(len, manifest.splits.values()))) as advance:
        readable = check_shards(manifest, bool(request["digests"]), advance, report)
    if readable:
        check_coverage(manifest, report)
        if is_map(manifest):
            chips = read_chips(manifest)
            check_distances(manifest, chips, report)
            _draw(manifest, chips, request["picture"], report)
        elif request["picture"]:
            report.add("warn", "no picture: these samples do not lie on a map")
    if request["json"]:
        print(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        _print(manifest, report)
    return 1 if report.failed else 0


def _draw(manifest: Manifest, chips: Mapping[str, Any], wanted: str | None, report: Report) -> None:
    from hpcdl.check.picture import draw_splits  # matplotlib takes a while to come up

    path = Path(wanted or manifest.folder / "splits.png")
    try:
        draw_splits(path, manifest, dict(chips))
    except OSError as error:
        # A shared data set is often one that its readers cannot write to: that says nothing against it.
        report.add(
            "fail" if wanted else "warn",
            f"{path}: the picture cannot be written: {error.strerror}",
            "give --picture FILE",
        )
        return
    report.figures["picture"] = str(path)


def _print(manifest: Manifest, report: Report) -> None:
    print(f"{manifest.folder}: {manifest.kind}, digest {manifest.digest[:12]}")
    for split, number in report.figures["num_samples"].items():
        print(f"  {split:>5} {number:>9} samples in {len(manifest.splits[split])} shards")
    for line in coverage_table(report):
        print(f"  {line}")
    for finding in report.findings:
        print(f"{finding.level:>4}  {finding.what}" + (f"; {finding.mend}" if finding.mend else ""))
    if report.figures.get("picture"):
        print(f"picture: {report.figures['picture']}")


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    if not sys.stderr.isatty():
        yield lambda: None
        return
    columns = (TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


if __name__ == "__main__":
    sys.exit(main())
