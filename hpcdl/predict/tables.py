"""Scores to read and to compute with: a table for the terminal, CSV and JSON files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from hpcdl.predict.accuracy import Counts, Scores

_COLUMNS = ("precision", "recall", "f1", "iou")


def print_scores(scores: Scores, region: str) -> None:
    """Scores of the classes that occur, and the overall ones, on stdout; plain text when nobody watches."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)  # a pipe has no width: the default of 80 would break long names
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("code", justify="right")
    table.add_column("class", no_wrap=True)
    for name in ("precision", "recall", "F1", "IoU", "pixels"):
        table.add_column(name, justify="right")
    for one in scores.per_class:
        if not math.isnan(one.f1):
            numbers = [f"{getattr(one, name):.3f}" for name in _COLUMNS]
            table.add_row(str(one.code), one.name, *numbers, f"{one.support:,}")
    console.print(table)
    where = "all labelled pixels" if region == "all" else f"the labelled pixels of region {region!r}"
    console.print(f"accuracy        {scores.accuracy:.4f}  of {where} ({scores.num_pixels:,})")
    console.print(f"macro-F1        {scores.macro_f1:.4f}  over the classes in truth or prediction (as scikit-learn)")
    console.print(f"macro-F1 truth  {scores.macro_f1_truth:.4f}  over the classes in the truth\n")


def write_accuracy_csv(path: Path, scores: Scores) -> None:
    """One row a class, empty cells for classes that do not occur."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["code", "name", *_COLUMNS, "support"])
        for one in scores.per_class:
            numbers = [getattr(one, name) for name in _COLUMNS]
            cells = ["" if math.isnan(number) else f"{number:.6f}" for number in numbers]
            writer.writerow([one.code, one.name, *cells, one.support])


def write_confusion_csv(path: Path, pixels_KK: Counts, classes: Sequence[Mapping[str, Any]]) -> None:
    """Pixels: truth by row, prediction by column, headed by codes and names."""
    heads = [f"{entry['code']} {entry['name']}" for entry in classes]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["truth \\ prediction", *heads])
        for head, counts in zip(heads, pixels_KK.tolist(), strict=True):
            writer.writerow([head, *counts])


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """A JSON document, indented."""
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
