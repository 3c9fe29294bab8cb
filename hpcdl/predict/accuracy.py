"""How well a map agrees with labels: the confusion matrix, and the scores that follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.windows import Window

from hpcdl.predict.blend import NO_CLASS
from hpcdl.predict.geotiff import TILE_PX, ClassCodes
from hpcdl.predict.inputs import Inputs
from hpcdl.raster.legend import ClassMap

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Confusion:
    """Pixels by class.

    Attributes:
        pixels_KK: truth by row, prediction by column.
        unknown: scored pixels whose label is a code of no class of the run, by code.
    """

    pixels_KK: Counts
    unknown: Mapping[int, int]


@dataclass(frozen=True)
class ClassScores:
    """One class; a score is NaN when the class is in neither truth nor prediction, 0 when only in one of them."""

    code: int
    name: str
    precision: float
    recall: float
    f1: float
    iou: float
    support: int


@dataclass(frozen=True)
class Scores:
    """A map's scores.

    Attributes:
        accuracy: share of the scored pixels that have the right class.
        macro_f1: mean F1 of the classes that occur in truth or prediction, as scikit-learn's f1_score(average="macro").
        macro_f1_truth: mean F1 of the classes that occur in the truth.
        num_pixels: scored pixels.
    """

    accuracy: float
    macro_f1: float
    macro_f1_truth: float
    num_pixels: int
    per_class: tuple[ClassScores, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; null for a class that does not occur."""
        names = ("code", "precision", "recall", "f1", "iou", "support")
        return {
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "macro_f1_truth": self.macro_f1_truth,
            "num_pixels": self.num_pixels,
            "per_class": {one.name: {name: _or_none(getattr(one, name)) for name in names} for one in self.per_class},
        }


def count_confusion(map_file: Path, inputs: Inputs, classes: Sequence[Mapping[str, Any]]) -> Confusion:
    """Compare a map with the labels, strip by strip; only pixels of the region that have image data and a label count.

    Raises:
        FailedError: the label file is damaged.
    """
    assert inputs.labels is not None
    codes, class_map, number = ClassCodes(classes), ClassMap.from_json(classes), len(classes)
    pixels = np.zeros(number * number, np.int64)
    unknown: dict[int, int] = {}
    height, width = inputs.target.height, inputs.target.width
    with rasterio.open(map_file) as dataset:
        for row in range(0, height, TILE_PX):
            rows = min(TILE_PX, height - row)
            predicted_HW = codes.decode(dataset.read(1, window=Window(0, row, width, rows)))
            scored_HW = (predicted_HW != NO_CLASS) & inputs.in_region(row, rows)
            labels_HW = inputs.labels.read_on(inputs.target, row, 0, rows, width)
            truth_HW = class_map.indices(labels_HW)
            known_HW = scored_HW & (truth_HW != NO_CLASS)
            pairs = truth_HW[known_HW].astype(np.int64) * number + predicted_HW[known_HW]
            pixels += np.bincount(pairs, minlength=number * number)
            others, counts = np.unique(labels_HW[scored_HW & ~known_HW & (labels_HW >= 0)], return_counts=True)
            for code, count in zip(others.tolist(), counts.tolist(), strict=True):
                unknown[code] = unknown.get(code, 0) + count
    return Confusion(pixels.reshape(number, number), dict(sorted(unknown.items())))


def score(pixels_KK: Counts, classes: Sequence[Mapping[str, Any]]) -> Scores:
    """The scores of a confusion matrix that counts one pixel at least."""
    hits, truth, said = pixels_KK.diagonal(), pixels_KK.sum(axis=1), pixels_KK.sum(axis=0)
    per_class = tuple(
        ClassScores(
            code=int(entry["code"]),
            name=str(entry["name"]),
            precision=_ratio(hit, column, occurs=row + column > 0),
            recall=_ratio(hit, row, occurs=row + column > 0),
            f1=_ratio(2 * hit, row + column),
            iou=_ratio(hit, row + column - hit),
            support=row,
        )
        for entry, hit, row, column in zip(classes, hits.tolist(), truth.tolist(), said.tolist(), strict=True)
    )
    total = int(pixels_KK.sum())
    return Scores(
        accuracy=int(hits.sum()) / total,
        macro_f1=_mean([one.f1 for one in per_class if not math.isnan(one.f1)]),
        macro_f1_truth=_mean([one.f1 for one in per_class if one.support]),
        num_pixels=total,
        per_class=per_class,
    )


def _ratio(part: int, whole: int, occurs: bool = False) -> float:
    """part / whole; of nothing it is 0 for a class that occurs (scikit-learn's zero_division=0) and NaN else."""
    return part / whole if whole else (0.0 if occurs else math.nan)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
