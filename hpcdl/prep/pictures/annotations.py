"""Boxes of pictures as others write them down: Pascal VOC (a folder of XML files) and COCO (one JSON file).

A box that cannot be one (no number, no area, a category that is not listed) is told in `problems` and left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from hpcdl.errors import UsageError

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Box:
    """x0, y0, x1, y1 in pixels from the top left corner; `place` tells it in messages, `difficult` is COCO's crowd, too."""

    corners: Corners
    label: str
    difficult: bool
    place: str


@dataclass(frozen=True)
class Annotated:
    """One picture: names to look for, best first, the size written down (height, width) if any, and COCO's id."""

    names: tuple[str, ...]
    size: tuple[int, int] | None
    boxes: tuple[Box, ...]
    where: str
    source_id: int | str | None = None


@dataclass
class Annotations:
    """What some annotation files say, in their order.

    Attributes:
        pictures: one entry a picture.
        categories: (COCO's id, name) in the order of the ids, empty for VOC.
        problems: boxes left out, by picture (-1 for one that is not listed) and message.
        paths: the files.
        roots: the folders that were given, or that hold the files given.
    """

    pictures: list[Annotated] = field(default_factory=list)
    categories: list[tuple[int | str, str]] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    roots: list[Path] = field(default_factory=list)

    def default_images(self) -> list[str]:
        """Where the pictures usually are: in JPEGImages beside a folder of VOC files, else with the annotations."""
        folders = []
        for folder in self.roots:
            beside = folder.parent / "JPEGImages"
            folders.append(str(beside if beside.is_dir() and not self.categories else folder))
        return list(dict.fromkeys(folders))


def read_annotations(specs: Sequence[str], one_based: bool) -> Annotations:
    """Read folders of VOC files and single files, VOC or COCO; not both kinds together.

    Args:
        specs: paths.
        one_based: VOC boxes count pixels from 1 and include the last one.

    Raises:
        UsageError: a path is not there, or a file is no annotation; names it.
    """
    found = Annotations()
    kinds = set()
    for spec in specs:
        path = Path(spec).expanduser()
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() == ".xml" and not p.name.startswith("."))
            if not files:
                raise UsageError(f"{path}: holds no XML file; give a folder of VOC files, or COCO's JSON file itself")
        elif path.is_file():
            files = [path]
        else:
            raise UsageError(f"{path}: no such file or folder; give a folder of VOC files or a COCO JSON file")
        found.roots.append(path if path.is_dir() else path.parent)
        for file in files:
            kinds.add("voc" if file.suffix.lower() == ".xml" else "coco")
            if len(kinds) > 1:
                raise UsageError(f"{file}: VOC and COCO annotations do not go together; make a data set of each")
            try:
                if kinds == {"voc"}:
                    below = file.relative_to(path) if path.is_dir() else Path(file.name)
                    _read_voc(file, below.with_suffix("").as_posix(), one_based, found)
                else:
                    _read_coco(file, found)
            except OSError as error:
                raise UsageError(f"{file}: not readable: {error.strerror}") from None
            found.paths.append(file)
    if one_based and kinds == {"coco"}:
        raise UsageError("one_based is for VOC files; COCO counts from 0 always, so leave --one-based out")
    return found


def choose_classes(train: Annotations, names: Sequence[str]) -> tuple[tuple[str, int | str | None], ...]:
    """(name, COCO's id) of each class: those wanted, or COCO's categories, or the labels that occur.

    Raises:
        UsageError: a wanted one is no label of the annotations.
    """
    ids = {name: number for number, name in reversed(train.categories)}
    found = list(dict.fromkeys(name for _, name in train.categories))
    found = found or sorted({box.label for picture in train.pictures for box in picture.boxes})
    for name in names:
        if name not in found:
            known = ", ".join(found[:20]) + (", …" if len(found) > 20 else "")
            raise UsageError(f"class_names: no box of the annotations is labelled {name!r}; labels: {known}")
    return tuple((name, ids.get(name)) for name in (dict.fromkeys(names) if names else found))


def _read_voc(path: Path, below: str, one_based: bool, found: Annotations) -> None:
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except ElementTree.ParseError as error:
        raise UsageError(f"{path}:{error.position[0]}: not XML: {error}; mend the file or take it away") from None
    except (LookupError, ValueError) as error:  # an encoding that is not known
        raise UsageError(f"{path}: not readable as XML: {error}") from None
    if root.tag != "annotation":
        raise UsageError(f"{path}: not a VOC annotation: its root is <{root.tag}>, not <annotation>")
    number = len(found.pictures)
    boxes = []
    for position, node in enumerate(root.findall("object"), start=1):
        label = _text(node, "name")
        place = f"{path}: box {position} ({label or 'no name'})"
        texts = [_text(node, f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
        if not label or any(not text for text in texts):
            found.problems.append((number, f"{place}: no {'name' if not label else 'complete bndbox'}"))
            continue
        corners = _numbers(texts)
        if corners is None:
            found.problems.append((number, f"{place}: {', '.join(texts)} are not numbers"))
            continue
        x0, y0, x1, y1 = corners
        # A pixel counted from 1 and included spans what is from 0 its number less one to its number.
        shifted = (x0 - 1, y0 - 1, x1, y1) if one_based else corners
        difficult = _text(node, "difficult").lower() in ("1", "true", "yes")
        boxes.append(Box(shifted, label, difficult, place))
    name = _text(root, "filename").replace("\\", "/").rpartition("/")[2]
    names = (below, name) if name else (below,)
    size = _numbers([_text(root, "size/height"), _text(root, "size/width")])
    found.pictures.append(Annotated(names, _size(size), tuple(boxes), str(path)))


def _read_coco(path: Path, found: Annotations) -> None:
    try:
        body = json.loads(path.read_bytes().decode("utf-8-sig"), object_hook=_without_masks)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}; COCO annotations are JSON in UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {error}; give a COCO instances file, or a folder of VOC files") from None
    if not isinstance(body, dict) or not all(isinstance(body.get(key), list) for key in _COCO_LISTS):
        raise UsageError(f"{path}: not a COCO instances file: it needs the lists {', '.join(_COCO_LISTS)}")
    try:
        categories = {entry["id"]: str(entry["name"]).strip() for entry in body["categories"]}
        images = {entry["id"]: entry for entry in body["images"]}
        names = {number: str(entry["file_name"]) for number, entry in images.items()}
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path}: an entry of categories or images lacks {error}") from None
    for kind, count in (("categories", len(categories)), ("images", len(images))):
        if count != len(body[kind]):
            raise UsageError(f"{path}: two {kind} have the same id; ids must be unique")
    if len(set(categories.values())) != len(categories):
        twice = sorted(name for name in categories.values() if list(categories.values()).count(name) > 1)
        raise UsageError(f"{path}: two categories are named {twice[0]!r}; names must be unique")
    first = len(found.pictures)
    order = {number: first + place for place, number in enumerate(images)}
    boxes: dict[Any, list[Box]] = {number: [] for number in images}
    for entry in body["annotations"]:
        entry = entry if isinstance(entry, dict) else {}
        number, place = entry.get("image_id"), f"{path}: annotation {entry.get('id')}"
        known = isinstance(number, int | str) and number in images
        box = _coco_box(entry, categories, place)
        if not known:
            found.problems.append((-1, f"{place}: image {number} is not listed"))
        elif isinstance(box, str):
            found.problems.append((order[number], f"{box} (picture {names[number]})"))
        else:
            boxes[number].append(box)
    # Ids of both kinds, numbers and text, may come together.
    both = {*found.categories, *categories.items()}
    found.categories = sorted(both, key=lambda item: (isinstance(item[0], str), item))
    for number, entry in images.items():
        size = _numbers([entry.get("height"), entry.get("width")])
        where = f"{path}: picture {names[number]}"
        found.pictures.append(Annotated((names[number],), _size(size), tuple(boxes[number]), where, number))


_COCO_LISTS = ("images", "annotations", "categories")


def _coco_box(entry: Mapping[str, Any], categories: Mapping[Any, str], place: str) -> Box | str:
    """The box of an annotation, or what is wrong with it."""
    category, values = entry.get("category_id"), entry.get("bbox")
    if not isinstance(category, int | str) or category not in categories:
        return f"{place}: category {category} is not listed"
    numbers = _numbers(values) if isinstance(values, list) and len(values) == 4 else None
    if numbers is None:
        return f"{place}: bbox {values} is not four numbers (x, y, width, height)"
    x, y, width, height = numbers
    if width < 0 or height < 0:
        return f"{place}: bbox {values} has a negative side"
    return Box((x, y, x + width, y + height), categories[category], bool(entry.get("iscrowd", 0)), place)


def _without_masks(entry: dict[str, Any]) -> dict[str, Any]:
    """Outlines are most of a COCO file, and boxes need none: they go while it is read."""
    entry.pop("segmentation", None)
    return entry


def _text(node: Any, name: str) -> str:
    return (node.findtext(name) or "").strip()


def _numbers(values: Sequence[Any]) -> Any:
    """The values as finite floats, None when one of them is not."""
    try:
        numbers = tuple(float(value) for value in values if not isinstance(value, bool))
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if len(numbers) == len(values) and all(map(math.isfinite, numbers)) else None


def _size(numbers: Any) -> tuple[int, int] | None:
    """Height and width, None where they are not known; many files say 0."""
    return (int(numbers[0]), int(numbers[1])) if numbers and min(numbers) > 0 else None
