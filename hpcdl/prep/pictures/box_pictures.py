"""Annotated pictures as samples: each picture found, its boxes checked and cut to it, and the splits that lists give."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcdl.errors import UsageError
from hpcdl.prep.pictures.annotations import Annotated, Annotations, Box
from hpcdl.prep.pictures.files import SUFFIXES, PictureFile, find_pictures, forms_of, warn
from hpcdl.prep.pictures.reading import Form


@dataclass(frozen=True, eq=False)
class Record:
    """One picture with its boxes.

    Attributes:
        number: in the order of the annotations.
        path: the picture.
        height: of the picture, upright.
        width: the same.
        boxes: M × 4: x0, y0, x1, y1 in its pixels.
        labels: M class indices.
        difficult: M flags.
        num_invalid: boxes that were left out.
        num_clipped: boxes that reached over the edge.
        num_excess: boxes beyond the number allowed.
    """

    number: int
    path: Path
    height: int
    width: int
    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    difficult: npt.NDArray[np.uint8]
    num_invalid: int
    num_clipped: int
    num_excess: int = 0

    @property
    def digest(self) -> str:
        """sha256 of the boxes and what belongs to them."""
        return hashlib.sha256(b"".join(a.tobytes() for a in (self.boxes, self.labels, self.difficult))).hexdigest()


@dataclass
class Part:
    """The samples of some annotations; `counts` tells what was left out besides the boxes of `records`."""

    records: list[Record]
    forms: dict[str, Form]
    counts: dict[str, int] = field(default_factory=dict)


def find_part(
    annotations: Annotations,
    folders: Sequence[str],
    classes: Sequence[str],
    mode: str,
    *,
    first: int,
    drop_damaged: bool,
    any_size: bool,
    keep_empty: bool,
) -> Part:
    """Find the picture of each annotation and check its boxes; all that is left out is counted, some of it named on stderr.

    Args:
        annotations: what was read.
        folders: of pictures, files or globs.
        classes: names by index.
        mode: channels, as for `read_picture`.
        first: number of the first picture.
        drop_damaged: leave out pictures that are missing or damaged, instead of refusing.
        any_size: keep pictures of another size than the annotated one.
        keep_empty: keep pictures without boxes.

    Raises:
        UsageError: a picture is missing or damaged, annotated twice, or its name fits several files.
    """
    lookup = _Lookup(find_pictures(folders, "--images"))
    files: dict[int, Path] = {}
    owners: dict[Path, str] = {}
    missing = []
    for place, picture in enumerate(annotations.pictures):
        path = lookup.find(picture)
        if path is None:
            missing.append(f"{picture.where}: no picture {' or '.join(picture.names)} in {_shown(folders)}")
            continue
        if path in owners:
            raise UsageError(
                f"{picture.where}: the picture {path} is annotated by {owners[path]} already; keep one of both"
            )
        owners[path], files[place] = picture.where, path
    if missing and not drop_damaged:
        raise UsageError(
            f"{missing[0]} ({len(missing)} such); give the right --images, or leave them out with --damaged drop"
        )
    forms, damaged = forms_of(files.values(), mode, drop_damaged)
    part = Part([], {})
    problems = [text for _, text in annotations.problems]
    invalid = Counter(place for place, _ in annotations.problems)
    index = {name: number for number, name in enumerate(classes)}
    sizes, without = [], 0
    for place, path in files.items():
        if path not in forms:
            continue
        picture, form = annotations.pictures[place], forms[path]
        if picture.size not in (None, (form.height, form.width)) and not any_size:
            sizes.append(f"{picture.where}: is for {_size(picture.size)} pixels, {path} has {_size(form)}")
            continue
        record, told = _record(first + place, path, form, picture.boxes, index, invalid[place])
        problems += told
        if not len(record.boxes) and not keep_empty:
            without += 1
            _count(part.counts, "num_invalid_boxes", record.num_invalid)
            continue
        part.records.append(record)
        part.forms[str(path)] = form
    _count(part.counts, "num_invalid_boxes", invalid[-1])
    _count(part.counts, "num_without_boxes", without)
    _count(part.counts, "num_damaged", len(missing) + len(damaged))
    _count(part.counts, "num_other_size", len(sizes))
    warn(f"{text}; left out" for text in problems)
    warn(f"{text}; left out" for text in missing)
    warn(f"{text}; left out (--any-size keeps such pictures)" for text in sizes)
    unused = len(lookup.files) - len(owners)
    if unused:
        warn([f"{_shown(folders)}: {unused} pictures have no annotation; left aside"])
    return part


def limited(record: Record, max_boxes: int) -> Record:
    """The record with its largest boxes, in their order."""
    if len(record.boxes) <= max_boxes:
        return record
    sides = record.boxes[:, 2:] - record.boxes[:, :2]
    kept = np.sort(np.argsort(-sides.prod(axis=1), kind="stable")[:max_boxes])
    changed: dict[str, Any] = {name: getattr(record, name)[kept] for name in ("boxes", "labels", "difficult")}
    return Record(**{**vars(record), **changed, "num_excess": len(record.boxes) - max_boxes})


def name_keys(name: str) -> list[str]:
    """What a picture's name may be looked up by, the most exact first."""
    whole = unicodedata.normalize("NFC", name.replace("\\", "/").strip().removeprefix("./"))
    last = whole.rpartition("/")[2]
    bare = [
        text[: -len(Path(text).suffix)] for text in (whole, last) if Path(text).suffix.lower() in {*SUFFIXES, ".xml"}
    ]
    return list(dict.fromkeys([whole, last, *bare]))


class _Lookup:
    """Pictures by their path below the folder given, else by their name, with or without ending."""

    def __init__(self, files: Sequence[PictureFile]) -> None:
        self.files = files
        self._paths: dict[str, set[Path]] = {}
        self._names: dict[str, set[Path]] = {}
        for file in files:
            for key in name_keys(file.below):
                known = self._names if key.count("/") < file.below.count("/") else self._paths
                known.setdefault(key, set()).add(file.path)

    def find(self, picture: Annotated) -> Path | None:
        """The picture's file, None when there is none; the most exact match wins."""
        ambiguous: list[str] = []
        for known in (self._paths, self._names):
            for name in picture.names:
                for key in name_keys(name):
                    paths = known.get(key, set())
                    if len(paths) == 1:
                        return next(iter(paths))
                    ambiguous += sorted(map(str, paths))
        if ambiguous:
            shown = ", ".join(dict.fromkeys(ambiguous))
            raise UsageError(
                f"{picture.where}: {picture.names[-1]!r} fits several pictures: {shown}; give fewer --images"
            )
        return None


def _record(
    number: int, path: Path, form: Form, boxes: Sequence[Box], index: Mapping[str, int], num_invalid: int
) -> tuple[Record, list[str]]:
    """The record of a picture, and what is wrong with the boxes that it lacks."""
    kept, labels, difficult, told, num_clipped = [], [], [], [], 0
    for box in boxes:
        x0, y0, x1, y1 = box.corners
        shown = ", ".join(f"{value:g}" for value in box.corners)
        inside = (max(x0, 0.0), max(y0, 0.0), min(x1, float(form.width)), min(y1, float(form.height)))
        if box.label not in index:
            told.append(f"{box.place}: the label {box.label!r} is no class")
        elif x1 <= x0 or y1 <= y0:
            what = "has a negative side" if x1 < x0 or y1 < y0 else "has no area"
            told.append(f"{box.place}: the box {shown} {what}")
        elif inside[2] <= inside[0] or inside[3] <= inside[1]:
            told.append(f"{box.place}: the box {shown} lies outside the picture of {_size(form)} pixels")
        else:
            num_clipped += inside != box.corners
            kept.append(inside)
            labels.append(index[box.label])
            difficult.append(box.difficult)
    arrays = np.array(kept, np.float64).reshape(-1, 4), np.array(labels, np.int64), np.array(difficult, np.uint8)
    return Record(number, path, form.height, form.width, *arrays, num_invalid + len(told), num_clipped), told


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _size(size: Form | tuple[int, int] | None) -> str:
    height, width = (size.height, size.width) if isinstance(size, Form) else size or (0, 0)
    return f"{height} × {width}"


def _count(counts: dict[str, int], name: str, number: int) -> None:
    if number:
        counts[name] = counts.get(name, 0) + number
