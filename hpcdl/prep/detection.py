"""Make a data set for object detection from pictures and their boxes: Pascal VOC (XML) or COCO (JSON).

    hpcdl preprocess detection --annotations Annotations --images JPEGImages --train-list train.txt --val-list val.txt \
--size-px 416 -o data/cells

Pictures keep their proportions and are padded to one size; scale and offset tell where a box lies in the original.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep import plan as plans
from hpcdl.prep.partition import Indices
from hpcdl.prep.pictures.annotations import Annotations, choose_classes, read_annotations
from hpcdl.prep.pictures.box_pictures import Part, find_part, limited
from hpcdl.prep.pictures.box_splits import Dealing, deal
from hpcdl.prep.pictures.files import digests_of, warn
from hpcdl.prep.pictures.reading import Form, read_picture
from hpcdl.prep.pictures.resizing import common_form, fit_of, resize_picture, target_size
from hpcdl.prep.pictures.tasks import tasks_with_files
from hpcdl.prep.statistics import ImageSums, histogram, image_statistics
from hpcdl.resources import Range

# Part of every plan's digest: raise it when the same settings and sources come to mean other bytes.
_REVISION = 1


FILES = (
    "annotations",
    "images",
    "val_annotations",
    "val_images",
    "test_annotations",
    "test_images",
    "train_list",
    "val_list",
    "test_list",
)
"""Settings that name files or globs: checked before a job is queued."""


@dataclass(frozen=True)
class Settings:
    """What `hpcdl preprocess detection` accepts."""

    annotations: tuple[str, ...]
    """Folders of VOC files (XML) or COCO files (JSON)"""
    images: tuple[str, ...] = ()
    """Folders or globs of the pictures (default: JPEGImages beside a VOC folder, else where the annotations are)"""
    val_annotations: tuple[str, ...] = ()
    """Annotations of the val split"""
    val_images: tuple[str, ...] = ()
    """Its pictures (default: as images)"""
    test_annotations: tuple[str, ...] = ()
    """Annotations of the test split"""
    test_images: tuple[str, ...] = ()
    """Its pictures (default: as images)"""
    train_list: str | None = None
    """File with a train picture's name a line (default: all that the other lists do not have)"""
    val_list: str | None = None
    """The same for val"""
    test_list: str | None = None
    """The same for test"""
    one_based: bool = False
    """VOC boxes count pixels from 1 and include the last, as Pascal VOC's own do"""
    class_names: tuple[str, ...] = ()
    """Classes in the order of their indices; give it once a name; other boxes are left out (default: all, sorted)"""
    size_px: tuple[int, ...] = ()
    """Size of the stored pictures: one number, or height and width (default: theirs, if they are of one size)"""
    fill: Annotated[int, Range(0, 65535)] = 114
    """What the padding holds"""
    mode: Literal["keep", "gray", "rgb", "rgba"] = "rgb"
    """Channels of the result; keep needs pictures that are all alike"""
    max_boxes: Annotated[int, Range(1)] | None = None
    """Keep at most so many boxes a picture, the largest (default: as many as a picture has)"""
    keep_empty: bool = False
    """Keep pictures without boxes"""
    any_size: bool = False
    """Keep pictures whose size is not the annotated one; their boxes are taken as they are"""
    damaged: Literal["refuse", "drop"] = "refuse"
    """Whether missing and damaged pictures are an error or left out and counted"""
    split: Literal["random", "order"] = "random"
    """How pictures are dealt where no lists and no other annotations are given; copies of one picture stay together"""
    group: str | None = None
    """Regular expression; pictures in whose names it (or its brackets) matches the same, such as a patient, stay together"""
    val_fraction: float = 0.1
    """Share of the pictures that go to val; unused with lists, and with val or test annotations"""
    test_fraction: float = 0.1
    """Share of the pictures that go to test; unused in the same cases"""
    seed: int = 0
    """Draws the pictures"""
    shard_mb: Annotated[int, Range(1)] = 32
    """Size of a shard, at most, in megabytes"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan(plans.Plan):
    """A plan with what the workers need; `items` of its tasks are records.

    Attributes:
        options: the settings.
        form: of the stored pictures.
        max_boxes: places for boxes in each sample.
        classes: (name, COCO's id or None) by index.
        names: of all annotated pictures, in the order of their numbers.
        source_ids: COCO's ids of them, empty for VOC.
    """

    options: Settings
    form: Form
    max_boxes: int
    classes: tuple[tuple[str, int | str | None], ...]
    names: tuple[str, ...]
    source_ids: tuple[int | str, ...]


def plan(settings: Settings) -> Plan:
    """Read all annotations and the heads of the pictures, check the boxes, and deal the pictures to the splits.

    Raises:
        UsageError: a setting, an annotation or a picture is not usable; says which and what to do.
    """
    size = target_size(settings.size_px)
    _check(settings)
    given = {
        split: read_annotations(getattr(settings, f"{part}annotations"), settings.one_based)
        for split, part in (("train", ""), ("val", "val_"), ("test", "test_"))
        if getattr(settings, f"{part}annotations")
    }
    classes = choose_classes(given["train"], settings.class_names)
    parts = _parts(settings, given, [name for name, _ in classes])
    records = [record for part in parts.values() for record in part.records]
    if not records:
        raise UsageError(
            "no picture with boxes is left; see the warnings, or keep pictures without boxes: --keep-empty"
        )
    form = common_form({name: form for part in parts.values() for name, form in part.forms.items()}, size)
    if settings.fill > np.iinfo(form.dtype).max:
        raise UsageError(f"fill is {settings.fill}; the pictures are {form.dtype}, so it is at most 255")
    max_boxes = settings.max_boxes or max(1, *(len(record.boxes) for record in records))
    digests, pictures = digests_of("image", [record.path for record in records])
    splits, counts = _splits(settings, given, parts, digests)
    records = [limited(record, max_boxes) for record in records]
    for split, own in splits.items():
        for name in ("num_invalid", "num_clipped", "num_excess"):
            number = sum(getattr(records[n], name) for n in own) + counts[split].pop(f"{name}_boxes", 0)
            counts[split].update({f"{name}_boxes": number} if number else {})
    tasks, content = tasks_with_files(
        splits,
        records,
        [f"{digest} {record.number} {record.digest}" for record, digest in zip(records, digests, strict=True)],
        [str(record.path) for record in records],
        form.channels * form.height * form.width * np.dtype(form.dtype).itemsize + max_boxes * 25 + 48,
        settings.shard_mb,
    )
    decisive = [form.channels, form.height, form.width, form.dtype, settings.mode, settings.fill, settings.damaged]
    annotated = [entry for one in given.values() for entry in one.pictures]
    files = [path for one in given.values() for path in one.paths]
    lists = [getattr(settings, f"{split}_list") for split in plans.SPLITS]
    return Plan(
        digest=plans.plan_digest("detection", _REVISION, decisive, max_boxes, classes, content),
        settings=dataclasses.asdict(settings),
        sources=(
            pictures,
            digests_of("annotations", files)[1],
            *plans.describe_sources([("list", Path(name).expanduser()) for name in lists if name]),
        ),
        fields=_fields(form, max_boxes, settings.fill),
        shards=tasks,
        counts=counts,
        options=settings,
        form=form,
        max_boxes=max_boxes,
        classes=classes,
        names=tuple(entry.names[0] for entry in annotated),
        source_ids=tuple(entry.source_id for entry in annotated if entry.source_id is not None),
    )


def make_shard(plan: Plan, task: plans.ShardTask) -> plans.ShardContent:
    """Read the task's pictures, and bring them and their boxes to the common size.

    Raises:
        FailedError: a picture is damaged, or not what it was when the plan was made.
    """
    form = plan.form
    arrays = {
        name: np.full((len(task.items), *entry["shape"]), entry.get("fill", 0), entry["dtype"])
        for name, entry in plan.fields.items()
    }
    sums = ImageSums(form.channels)
    damaged: list[str] = []
    place = 0
    for record in task.items:
        try:
            pixels_CHW = read_picture(record.path, plan.options.mode)
        except FailedError as error:
            if plan.options.damaged == "refuse":
                raise
            damaged.append(f"{error}; left out")
            continue
        if pixels_CHW.shape != (form.channels, record.height, record.width) or pixels_CHW.dtype != form.dtype:
            raise FailedError(f"{record.path}: is not what it was when the plan was made; run the command again")
        fit = fit_of(record.height, record.width, form.height, form.width, "pad")
        image_CHW = resize_picture(pixels_CHW, form.height, form.width, "pad", fill=plan.options.fill)
        sums.add(image_CHW[:, *fit.inside(form.height, form.width)])  # padding is no data
        scale, offset = (fit.width / record.width, fit.height / record.height), (fit.left, fit.top)
        number = len(record.boxes)
        arrays["image"][place] = image_CHW
        arrays["boxes"][place, :number] = record.boxes * np.tile(scale, 2) + np.tile(offset, 2)
        arrays["box_label"][place, :number] = record.labels
        arrays["box_difficult"][place, :number] = record.difficult
        scalars = {"num_boxes": number, "height": record.height, "width": record.width, "image_id": record.number}
        for name, value in {**scalars, "scale": scale, "offset": offset}.items():
            arrays[name][place] = value
        place += 1
    warn(damaged)
    arrays = {name: array[:place] for name, array in arrays.items()}
    labels = arrays["box_label"][arrays["box_label"] >= 0]
    attributes = {"label_histogram": histogram(labels, len(plan.classes)), **sums.attributes()}
    return plans.ShardContent(arrays, attributes, len(damaged))


def manifest_entries(plan: Plan, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Classes with their train boxes, statistics of the train split (without padding), names of the pictures."""
    train = [attributes[task.name] for task in plan.shards if task.split == "train"]
    counts = np.sum([shard["label_histogram"] for shard in train], axis=0).tolist()
    classes = [
        {"index": index, "name": name, "num_boxes": counts[index], **({} if number is None else {"id": number})}
        for index, (name, number) in enumerate(plan.classes)
    ]
    entries: dict[str, Any] = {
        "classes": classes,
        "ignore_index": -1,
        "statistics": {"image": image_statistics(train), "label": {"histogram": counts}},
        "images": list(plan.names),
    }
    return {**entries, "source_ids": list(plan.source_ids)} if plan.source_ids else entries


def summary(plan: Plan, entries: Mapping[str, Any]) -> list[str]:
    """The size, what was left out, and a table of the classes with their train boxes."""
    form = plan.form
    lines = [f"image: {form.channels} × {form.height} × {form.width} {form.dtype}; {plan.max_boxes} boxes at most"]
    for split, counts in plan.counts.items():
        told = [f"{number} {name.removeprefix('num_').replace('_', ' ')}" for name, number in counts.items()]
        lines += [f"{split}: {', '.join(told)}"] if told else []
    lines.append(f"{'index':>5} {'train boxes':>12}  class")
    return lines + [f"{entry['index']:>5} {entry['num_boxes']:>12}  {entry['name']}" for entry in entries["classes"]]


def _check(settings: Settings) -> None:
    lists = [split for split in plans.SPLITS if getattr(settings, f"{split}_list")]
    others = [part for part in ("val", "test") if getattr(settings, f"{part}_annotations")]
    if lists and others:
        raise UsageError(f"{lists[0]}_list and {others[0]}_annotations do not go together; give the splits in one way")
    for part in ("val", "test"):
        if getattr(settings, f"{part}_images") and part not in others:
            raise UsageError(f"{part}_images is given without {part}_annotations; give both")
    if settings.group is not None and (lists or others or settings.split == "order"):
        raise UsageError("group is for pictures that are drawn; with lists, given splits or --split order leave it out")


def _parts(settings: Settings, given: Mapping[str, Annotations], classes: Sequence[str]) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    first = 0
    for split, one in given.items():
        own = getattr(settings, f"{split}_images") if split != "train" else ()
        parts[split] = find_part(
            one,
            own or settings.images or one.default_images(),
            classes,
            settings.mode,
            first=first,
            drop_damaged=settings.damaged == "drop",
            any_size=settings.any_size,
            keep_empty=settings.keep_empty,
        )
        first += len(one.pictures)
    return parts


def _splits(
    settings: Settings, given: Mapping[str, Annotations], parts: Mapping[str, Part], digests: Sequence[str]
) -> tuple[dict[str, Indices], dict[str, dict[str, int]]]:
    """The places of each split's records among all, and what was left out of it."""
    counts = {split: dict(part.counts) for split, part in parts.items()}
    if len(parts) > 1:
        ends = np.cumsum([0, *(len(part.records) for part in parts.values())])
        splits = {split: np.arange(ends[n], ends[n + 1]) for n, split in enumerate(parts)}
    else:
        lists = {split: getattr(settings, f"{split}_list") for split in plans.SPLITS}
        lists = {split: name for split, name in lists.items() if name}
        fractions = settings.val_fraction, settings.test_fraction
        dealing = Dealing(lists, settings.split, settings.group, *fractions, settings.seed)
        splits, unlisted = deal(dealing, given["train"].pictures, parts["train"].records, digests)
        if unlisted:
            warn([f"{unlisted} pictures are in no list; left out"])
            counts["train"]["num_unlisted"] = unlisted
    for split in {"train": 0, **parts}:
        if not len(splits.get(split, ())):
            raise UsageError(f"the {split} split has no picture with boxes; see the warnings, or give --keep-empty")
    # What was left out before the splits were made belongs to none of them; it is told with train.
    return splits, {split: counts.get(split, {}) for split in splits}


def _fields(form: Form, places: int, fill: int) -> dict[str, dict[str, Any]]:
    """The manifest's `fields`."""
    scalar: dict[str, Any] = {"dtype": "int64", "shape": []}
    pair: dict[str, Any] = {"dtype": "float32", "shape": [2]}
    shape = [form.channels, form.height, form.width]
    return {
        "image": {"dtype": form.dtype, "shape": shape, "fill": fill},
        "boxes": {"dtype": "float32", "shape": [places, 4]},
        "box_label": {"dtype": "int64", "shape": [places], "fill": -1},
        "box_difficult": {"dtype": "uint8", "shape": [places]},
        "num_boxes": scalar,
        "scale": pair,
        "offset": pair,
        "height": scalar,
        "width": scalar,
        "image_id": scalar,
    }
