"""No leak: pixels of two splits of a map are as far apart as the manifest certifies, measured on the shards themselves."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from hpcdl.check.findings import Report
from hpcdl.prep.distance import smallest_distance
from hpcdl.shards.manifest import Manifest
from hpcdl.shards.reader import ShardReader

Chips = npt.NDArray[np.int32]
# Distances are sums and roots of whole numbers.
_SAME = 1e-6


def is_map(manifest: Manifest) -> bool:
    """Whether samples are chips of one grid."""
    return "grid" in manifest.entries and {"row", "col"} <= set(manifest.fields)


def read_chips(manifest: Manifest) -> dict[str, Chips]:
    """Top-left (row, col) of the chips of each split."""
    chips: dict[str, Chips] = {}
    for split in manifest.splits:
        reader = ShardReader(manifest, split, ("row", "col"))
        if len(reader):
            fields = reader.gather(np.arange(len(reader)))
            chips[split] = np.stack([fields["row"], fields["col"]], axis=1)
    return chips


def check_distances(manifest: Manifest, chips: dict[str, Chips], report: Report) -> None:
    """Measure the distance between each two splits and compare it with the manifest's."""
    recorded = manifest.entries.get("distances", {})
    size = manifest.entries["grid"]["chip_px"]
    measured: dict[str, float] = {}
    for one, other in itertools.combinations(chips, 2):
        apart = smallest_distance(chips[one], chips[other], size)
        if apart is None:
            continue
        names = f"{one}-{other}"
        measured[names] = apart
        said = recorded.get(names, {}).get("px")
        if apart == 0:
            report.add("fail", f"{one} and {other} share pixels", "preprocess the data again")
        elif said is None:
            report.add("warn", f"{one} and {other} are {apart:.6g} pixels apart; the manifest certifies no distance")
        elif abs(apart - said) > _SAME:
            report.add(
                "fail",
                f"{one} and {other} are {apart:.6g} pixels apart, the manifest certifies {said:.6g}",
                "preprocess the data again",
            )
        else:
            report.add("ok", f"{one} and {other} are {apart:.6g} pixels apart, as the manifest certifies")
    report.figures["distances_px"] = measured
