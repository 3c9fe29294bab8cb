"""After the rasters: scores, pictures, everything moved into place, and what is printed."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcdl.errors import FailedError, UsageError
from hpcdl.predict import tables
from hpcdl.predict.accuracy import Confusion, Scores, count_confusion, score
from hpcdl.predict.matrix import draw_confusion
from hpcdl.predict.picture import draw_map
from hpcdl.predict.request import Job
from hpcdl.raster.legend import Legend, load_legend


def finish(job: Job, rasters: Sequence[Path]) -> None:
    """Score the map, draw the pictures, publish all files and print them; on rank 0, when all rows are written.

    Raises:
        FailedError: labels were given but none counts, an input is damaged, or a file cannot be written.
    """
    names = [path.name for path in rasters]
    categories = rasters[0].with_name(rasters[0].name + ".aux.xml")
    if categories.is_file():
        names.append(categories.name)
    scores = None
    if job.inputs.labels is not None:
        confusion = count_confusion(rasters[0], job.inputs, job.trained.classes)
        _warn_unknown(job, confusion)
        if not confusion.pixels_KK.any():
            draw_map(job.work / job.beside(".png"), rasters[0], job, None)
            placed = publish(job.work, job.out.parent, [*names, job.beside(".png")])
            raise FailedError(
                f"{job.inputs.labels.path}: no pixel of region {job.settings.region!r} has both image data and a label of "
                f"the run's classes, so nothing could be scored; the map is written: {placed[0]}"
            )
        scores = score(confusion.pixels_KK, job.trained.classes)
        names += _write_scores(job, confusion, scores)
    picture = job.beside(".png")
    draw_map(job.work / picture, rasters[0], job, scores)
    placed = publish(job.work, job.out.parent, [*names, picture])
    if job.request.json:
        print(json.dumps(_document(job, placed, scores), ensure_ascii=False, allow_nan=False))
        return
    if scores is not None:
        tables.print_scores(scores, job.settings.region)
    for path in placed:
        print(path)


def publish(work: Path, folder: Path, names: Sequence[str]) -> list[Path]:
    """Move finished files into place, each in one step, and remove the work folder.

    Raises:
        FailedError: a place cannot be written.
    """
    for name in names:
        try:
            (work / name).replace(folder / name)
        except OSError as error:
            raise FailedError(f"{folder / name}: cannot be written: {error.strerror}") from None
    shutil.rmtree(work, ignore_errors=True)
    return [folder / name for name in names]


def _write_scores(job: Job, confusion: Confusion, scores: Scores) -> list[str]:
    """Names of the files."""
    classes = job.trained.classes
    names = [job.beside(f".{end}") for end in ("accuracy.json", "accuracy.csv", "confusion.csv", "confusion.png")]
    paths = [job.work / name for name in names]
    numbers = scores.to_json()
    per_class = numbers.pop("per_class")
    unknown = {str(code): number for code, number in confusion.unknown.items()}
    tables.write_json(
        paths[0], {**numbers, "region": job.settings.region, "unknown_codes": unknown, "per_class": per_class}
    )
    tables.write_accuracy_csv(paths[1], scores)
    tables.write_confusion_csv(paths[2], confusion.pixels_KK, classes)
    draw_confusion(paths[3], confusion.pixels_KK, classes, job.trained.run.name)
    return names


def _document(job: Job, placed: Sequence[Path], scores: Scores | None) -> dict[str, Any]:
    numbers = {} if scores is None else scores.to_json()
    return {
        "run": job.trained.run.name,
        "checkpoint": job.trained.checkpoint.name,
        "map": str(placed[0]),
        "picture": str(placed[-1]),
        "files": [str(path) for path in placed],
        "region": job.settings.region,
        "accuracy": numbers.get("accuracy"),
        "macro_f1": numbers.get("macro_f1"),
        "macro_f1_truth": numbers.get("macro_f1_truth"),
        "num_pixels": numbers.get("num_pixels", 0),
        "per_class": numbers.get("per_class", {}),
    }


def _warn_unknown(job: Job, confusion: Confusion) -> None:
    """Say which label codes the run has no class for; codes that the legend itself leaves out need no word."""
    legend = _legend(job)
    names = {code: one.name for one in legend.classes for code in one.sources} if legend else {}
    ignored = legend.ignored if legend else {}
    unknown = {code: number for code, number in confusion.unknown.items() if code not in ignored}
    if not unknown:
        return
    listed = ", ".join(
        f"{code} {names.get(code, '(not in the legend)')}: {number:,}" for code, number in unknown.items()
    )
    print(
        f"hpcdl: warning: {sum(unknown.values()):,} label pixels are of codes that run {job.trained.run.name} has no class "
        f"for, and are not scored ({listed})",
        file=sys.stderr,
    )


def _legend(job: Job) -> Legend | None:
    """The legend that the data set was made with, where it can still be read; it only gives names here."""
    settings = job.trained.manifest.entries.get("settings", {})
    for name, classes_file in ((settings.get("legend"), settings.get("classes")), ("nlcd", None)):
        if name:
            with contextlib.suppress(UsageError):
                return load_legend(name, classes_file)
    return None
