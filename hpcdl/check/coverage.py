"""Which classes each split has, and in which shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hpcdl.check.findings import Report
from hpcdl.shards.manifest import Manifest
from hpcdl.shards.reader import ShardReader

# Samples whose labels are counted at once.
_AT_ONCE = 1024
# Classes that are named in one line.
_MOST_NAMED = 8


def check_coverage(manifest: Manifest, report: Report) -> None:
    """Count the labels of each split; warn of classes that a split lacks. Data sets without classes are left alone."""
    names = manifest.class_names
    if not names or "label" not in manifest.fields:
        return
    histograms = {
        split: count_labels(ShardReader(manifest, split, ("label",)), len(names))
        for split in manifest.splits
        if manifest.num_samples(split)
    }
    report.figures["histograms"] = {split: counts.tolist() for split, counts in histograms.items()}
    report.figures["classes"] = names
    complete = True
    for split, counts in histograms.items():
        missing = [name for name, count in zip(names, counts, strict=True) if count == 0]
        if not missing:
            continue
        complete = False
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        what = "no network learns them" if split == "train" else f"no score on {split} tells of them"
        report.add(
            "warn",
            f"{split} has nothing of: {', '.join(missing[:_MOST_NAMED])}{more}; {what}",
            "choose other regions, fractions or another seed, or gather classes (--classes)",
        )
    if complete:
        report.add("ok", f"all {len(names)} classes occur in {', '.join(histograms)}")


def count_labels(reader: ShardReader, num_classes: int) -> npt.NDArray[np.int64]:
    """How often each class index occurs in a split's labels; what is no class (such as 255, ignore) is left out."""
    counts = np.zeros(num_classes, np.int64)
    for start in range(0, len(reader), _AT_ONCE):
        numbers = np.arange(start, min(start + _AT_ONCE, len(reader)))
        labels: npt.NDArray[Any] = reader.gather(numbers)["label"].ravel()
        labels = labels[(labels >= 0) & (labels < num_classes)]
        counts += np.bincount(labels, minlength=num_classes)
    return counts


def coverage_table(report: Report) -> list[str]:
    """Classes by splits, in shares of each split's labels; empty for data sets without classes."""
    histograms = report.figures.get("histograms")
    if not histograms:
        return []
    wide = max(len(name) for name in report.figures["classes"])
    lines = [f"{'class':{wide}}" + "".join(f"{split:>18}" for split in histograms)]
    for index, name in enumerate(report.figures["classes"]):
        cells = "".join(
            f"{counts[index]:>10} {counts[index] / max(1, sum(counts)):>7.2%}" for counts in histograms.values()
        )
        lines.append(f"{name:{wide}}{cells}")
    return lines
