"""The yardstick of the land-cover tutorial: a per-pixel random forest (scikit-learn, 200 trees) on a data set's own split.

    python docs/forest.py data/zion forest.json

It trains on every labelled pixel of the data set's train region (U-Net leaves out a buffer), is scored on every labelled pixel of
the test region, on the data set's grid, with the code that scores `hpcdl predict`. About 13 minutes on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from rich.progress import track
from sklearn.ensemble import RandomForestClassifier

from hpcdl.predict.accuracy import score
from hpcdl.predict.tables import print_scores, write_json
from hpcdl.raster.grid import Grid
from hpcdl.raster.labels import open_labels
from hpcdl.raster.legend import ClassMap
from hpcdl.raster.scene import open_scenes
from hpcdl.shards.manifest import load_manifest

TREES, PART = 200, 10


def main(folder: Path, out: Path) -> None:
    """Train, score, print the table, write it as JSON."""
    entries = load_manifest(folder).entries
    settings, classes = entries["settings"], ClassMap.from_json(entries["classes"])
    grid = Grid.from_json(entries["grid"])
    scenes, labels = open_scenes(settings["images"]), open_labels(settings["labels"])
    image_CHW, valid_HW = scenes.read(grid, 0, 0, grid.height, grid.width, settings["resampling"])
    truth_HW = classes.indices(labels.read_on(grid, 0, 0, grid.height, grid.width))
    known_HW = valid_HW & (truth_HW != entries["ignore_index"])

    def region(split: str) -> np.ndarray:
        inside = np.zeros_like(known_HW)
        for row0, col0, row1, col1 in entries["regions"][split]:
            inside[row0:row1, col0:col1] = True
        return inside & known_HW

    train, test = region("train"), region("test")
    x, y, unseen = image_CHW[:, train].T, truth_HW[train], image_CHW[:, test].T
    votes = np.zeros((len(unseen), len(entries["classes"])))
    # All trees at once would take 20 GB; the mean of the parts' probabilities is what one forest of 200 gives.
    for part in track(range(TREES // PART), "trees, ten at a time"):
        forest = RandomForestClassifier(PART, n_jobs=-1, random_state=part).fit(x, y)
        votes[:, forest.classes_] += forest.predict_proba(unseen)
    number = len(entries["classes"])
    pairs = truth_HW[test].astype(np.int64) * number + votes.argmax(axis=1)
    scores = score(np.bincount(pairs, minlength=number**2).reshape(number, number), entries["classes"])
    print_scores(scores, "test")
    write_json(out, scores.to_json())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
