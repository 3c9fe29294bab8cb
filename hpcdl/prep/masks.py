"""Make a data set for segmentation from pictures and mask pictures that are paired by name.

    hpcdl preprocess masks --images Images --masks Labels --group '^(.*)-IM' --mode gray --out data/heart

Samples have the form that land cover has, so the same jobs train on them: image, and label with 255 for "ignore".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep import plan as plans
from hpcdl.prep.partition import by_group, in_order
from hpcdl.prep.pictures.files import NameRule, PictureFile, digests_of, find_pictures, forms_of, matched, pair_up, warn
from hpcdl.prep.pictures.mask_classes import MaskClasses
from hpcdl.prep.pictures.mask_legend import choose_classes
from hpcdl.prep.pictures.mask_reading import fit_pair, read_pair
from hpcdl.prep.pictures.reading import Form
from hpcdl.prep.pictures.resizing import common_form, target_size
from hpcdl.prep.pictures.tasks import check_whole, joined, tasks_with_files
from hpcdl.prep.pictures.tiles import tiles_of
from hpcdl.prep.statistics import ImageSums, histogram, image_statistics
from hpcdl.raster.legend import IGNORE_INDEX

Array = npt.NDArray[Any]

# Part of every plan's digest: raise it when the same settings and sources come to mean other bytes.
_REVISION = 1


FILES = ("images", "masks")
"""Settings that name files or globs: checked before a job is queued."""


@dataclass(frozen=True)
class Settings:
    """What `hpcdl preprocess masks` accepts."""

    images: tuple[str, ...]
    """Folders (searched to any depth), files or globs of the pictures"""
    masks: tuple[str, ...]
    """The same for the masks"""
    image_strip: tuple[str, ...] = ()
    """Text at the start or end of pictures' names that masks' names do not have, such as _rgb"""
    mask_strip: tuple[str, ...] = ()
    """Text at the start or end of masks' names that pictures' names do not have, such as _mask"""
    image_name: str | None = None
    """Regular expression searched in a picture's name; what its groups match is the name to pair by"""
    mask_name: str | None = None
    """The same for masks' names"""
    unpaired: Literal["refuse", "drop"] = "refuse"
    """Whether a picture without a mask, or a mask without a picture, is an error or left out and counted"""
    group: str | None = None
    """What must stay in one split: a regular expression searched in the picture's name, whose groups name the patient or
    scene; or folder, for pictures of one folder (default: each picture by itself)"""
    classes: tuple[str, ...] = ()
    """VALUE:NAME or '#RRGGBB:NAME', once a class, or a YAML file: classes: [{code, name, color, from: [codes]}], ignore:
    [codes] (default: as found; two values are background and foreground)"""
    ignore: tuple[str, ...] = ()
    """Mask values or #RRGGBB colours that no loss and no score shall count"""
    unknown: Literal["refuse", "ignore"] = "refuse"
    """Whether mask values of no class are an error or ignored like those of --ignore"""
    threshold: int | None = None
    """Two classes, parted here: foreground is what is at least this; for masks that are blurred or saved as JPEG"""
    mode: Literal["keep", "gray", "rgb", "rgba"] = "keep"
    """Channels of the pictures; keep needs pictures that are all alike"""
    alpha: Literal["drop", "white", "black"] = "drop"
    """What gray and rgb put behind transparent pixels; drop takes the colour that is stored there"""
    size_px: tuple[int, ...] = ()
    """Size of the result: one number, or height and width (default: as the pictures are, which must be of one size)"""
    resize: Literal["stretch", "crop", "pad", "tile"] = "stretch"
    """How pictures come to that size: without regard to proportions, cutting what stands out, with black margins that are
    ignored, or cut into tiles at full resolution"""
    stride_px: int | None = None
    """Pixels from one tile to the next (default: the size of a tile)"""
    min_valid: float = 0.0
    """Drop a sample when a smaller share of its pixels than this has a label; one without any is dropped always"""
    damaged: Literal["refuse", "drop"] = "refuse"
    """Whether a damaged picture or mask is an error or left out and counted"""
    split: Literal["random", "order"] = "random"
    """random: groups are drawn; order: the first samples train, then come val and test"""
    val_fraction: float = 0.1
    """Share of the samples that go to val"""
    test_fraction: float = 0.2
    """Share of the samples that go to test"""
    seed: int = 0
    """Draws the splits"""
    shard_mb: int = 32
    """Size of a shard, at most, in megabytes"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan(plans.Plan):
    """A plan with what the workers need; `items` of its tasks are (picture, mask, top, left of the tile)."""

    options: Settings
    form: Form
    classes: MaskClasses
    num_pairs: int
    num_groups: Mapping[str, int]


def plan(settings: Settings) -> Plan:
    """Check all inputs, pair them, find the classes, and deal the groups to the splits.

    Raises:
        UsageError: a setting or an input is not usable; says which and what to do.
    """
    size = target_size(settings.size_px)
    _check(settings, size)
    drop = settings.damaged == "drop"
    found, num_unpaired = pair_up(
        find_pictures(settings.images, "--images"),
        find_pictures(settings.masks, "--masks"),
        NameRule("--images", "--image", settings.image_strip, settings.image_name),
        NameRule("--masks", "--mask", settings.mask_strip, settings.mask_name),
        settings.unpaired == "drop",
    )
    forms, _ = forms_of([image.path for _, image, _ in found], settings.mode, drop)
    mask_forms, _ = forms_of([mask.path for _, _, mask in found], "values", drop)
    pairs = [pair for pair in found if pair[1].path in forms and pair[2].path in mask_forms]
    classes, unread = choose_classes(
        [mask.path for _, _, mask in pairs],
        f"--masks {' '.join(settings.masks)}",
        settings.classes,
        settings.ignore,
        settings.threshold,
        settings.unknown == "ignore",
        drop,
    )
    pairs = [pair for pair in pairs if pair[2].path not in unread]
    if not pairs:
        raise UsageError(f"--images {' '.join(settings.images)}: no pair is left; all are damaged")
    for _, image, mask in pairs:
        _check_sizes(forms[image.path], mask_forms[mask.path], image.path, mask.path)
    usable = {str(image.path): forms[image.path] for _, image, _ in pairs}
    form = common_form(usable, size)
    digests, image_source = digests_of("images", [image.path for _, image, _ in pairs])
    mask_digests, mask_source = digests_of("masks", [mask.path for _, _, mask in pairs])
    groups = joined([[*_group(settings, image), f"picture {digests[n]}"] for n, (_, image, _) in enumerate(pairs)])
    if settings.split == "order":
        dealt = in_order(len(pairs), settings.val_fraction, settings.test_fraction)
        owner = {n: split for split, numbers in dealt.items() for n in numbers.tolist()}
        check_whole(groups, [owner[n] for n in range(len(pairs))], [image.path for _, image, _ in pairs])
    else:
        dealt = by_group(groups, settings.val_fraction, settings.test_fraction, settings.seed)
    samples = [
        (n, *corner) for n, (_, image, _) in enumerate(pairs) for corner in _tiles(settings, forms[image.path], form)
    ]
    of_pair = np.array([n for n, _, _ in samples])
    splits = {split: np.flatnonzero(np.isin(of_pair, numbers)) for split, numbers in dealt.items()}
    tasks, content = tasks_with_files(
        splits,
        [(str(pairs[n][1].path), str(pairs[n][2].path), top, left) for n, top, left in samples],
        [f"{digests[n]} {mask_digests[n]} {top} {left}" for n, top, left in samples],
        [str(pairs[n][1].path) for n, _, _ in samples],
        form.height * form.width * (form.channels * np.dtype(form.dtype).itemsize + 1),
        settings.shard_mb,
    )
    decisive = {
        name: getattr(settings, name) for name in ("mode", "alpha", "size_px", "resize", "min_valid", "damaged")
    }
    num_damaged = len(found) - len(pairs)
    left_out = {"num_unpaired": num_unpaired, "num_damaged": num_damaged}
    counts = {name: number for name, number in left_out.items() if number}
    shape = [form.height, form.width]
    return Plan(
        digest=plans.plan_digest("masks", _REVISION, decisive, classes.to_json(), classes.rules(), content),
        settings=dataclasses.asdict(settings),
        sources=(image_source, mask_source),
        fields={
            "image": {"dtype": form.dtype, "shape": [form.channels, *shape]},
            "label": {"dtype": "uint8", "shape": shape},
        },
        shards=tasks,
        # What was left out before the splits were made belongs to none of them; it is told with the first one.
        counts={next(iter(splits)): counts} if counts else {},
        options=settings,
        form=form,
        classes=classes,
        num_pairs=len(pairs),
        num_groups={split: len({groups[n] for n in numbers.tolist()}) for split, numbers in dealt.items()},
    )


def make_shard(plan: Plan, task: plans.ShardTask) -> plans.ShardContent:
    """Read the task's pictures and masks and bring them to their form; samples without labels are dropped.

    Raises:
        FailedError: a file is damaged, or a mask holds an unknown value; names it.
    """
    form, settings = plan.form, plan.options
    images = np.empty((len(task.items), form.channels, form.height, form.width), form.dtype)
    labels = np.empty((len(task.items), form.height, form.width), np.uint8)
    sums, counts = ImageSums(form.channels), np.zeros(len(plan.classes.classes), np.int64)
    kept = 0
    dropped: list[str] = []
    opened: tuple[str, Array, Array] | None = None
    for image_path, mask_path, top, left in task.items:
        if opened is None or opened[0] != image_path:
            try:
                pair = read_pair(
                    Path(image_path), Path(mask_path), settings.mode, settings.alpha, form.channels, plan.classes
                )
                opened = (image_path, *pair)
            except FailedError as error:
                if settings.damaged == "refuse":
                    raise FailedError(f"{error}; mend it, or leave such files out with --damaged drop") from None
                opened = None
                dropped.append(f"{error}; left out")
                continue
        image_CHW, label_HW, inside = fit_pair(*opened[1:], form.height, form.width, settings.resize, top, left)
        valid = (label_HW != IGNORE_INDEX).mean()
        if valid == 0 or valid < settings.min_valid:
            continue
        images[kept], labels[kept] = image_CHW, label_HW
        sums.add(image_CHW[:, *inside])  # margins are no data
        counts += histogram(label_HW, len(counts))
        kept += 1
    warn(dropped)
    fields = {"image": images[:kept], "label": labels[:kept]}
    return plans.ShardContent(fields, {"histogram": counts, **sums.attributes()}, len(task.items) - kept)


def manifest_entries(plan: Plan, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Classes, the index to ignore, and the statistics of the train split."""
    train = [attributes[task.name] for task in plan.shards if task.split == "train"]
    counts = np.sum([np.asarray(shard["histogram"]) for shard in train], axis=0)
    return {
        "classes": plan.classes.to_json(),
        "ignore_index": IGNORE_INDEX,
        "statistics": {"image": image_statistics(train), "label": {"histogram": counts.tolist()}},
    }


def summary(plan: Plan, entries: Mapping[str, Any]) -> list[str]:
    """The pairs and groups, what was left out, and the classes with their share of the train pixels."""
    form = plan.form
    groups = ", ".join(f"{split} {number}" for split, number in plan.num_groups.items())
    lines = [
        f"pairs: {plan.num_pairs}; pictures: {form.channels} × {form.height} × {form.width} {form.dtype}; groups: {groups}"
    ]
    lines += [
        f"left out: {number} ({name.removeprefix('num_')})" for c in plan.counts.values() for name, number in c.items()
    ]
    counts = entries["statistics"]["label"]["histogram"]
    lines.append(f"{'index':>5} {'code':>6} {'train pixels':>13} {'share':>7}  class")
    for entry, pixels in zip(entries["classes"], counts, strict=True):
        share = pixels / max(1, sum(counts))
        lines.append(f"{entry['index']:>5} {entry['code']:>6} {pixels:>13} {share:>7.2%}  {entry['name']}")
    return lines


def _check(settings: Settings, size: tuple[int, int] | None) -> None:
    for name in ("stride_px", "shard_mb", "threshold"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")
    if not 0 <= settings.min_valid <= 1:
        raise UsageError(f"min_valid is {settings.min_valid}; it is a share from 0 to 1")
    if settings.resize == "tile" and size is None:
        raise UsageError("resize tile needs the size of a tile: give --size-px")
    if settings.stride_px is not None and settings.resize != "tile":
        raise UsageError("stride_px goes with --resize tile")
    if settings.threshold is not None and (settings.classes or settings.ignore):
        raise UsageError("threshold makes the two classes background and foreground; leave out --classes and --ignore")
    if settings.split == "order" and settings.group is not None:
        raise UsageError(
            "split order takes samples as they lie, which parts groups; leave out --group, or use --split random"
        )


def _check_sizes(form: Form, mask: Form, image_path: Path, mask_path: Path) -> None:
    if (form.height, form.width) != (mask.height, mask.width):
        raise UsageError(
            f"{mask_path}: is {mask.height} × {mask.width} pixels, but its picture {image_path} is {form.height} × "
            f"{form.width}; a mask must be as large as its picture"
        )


def _group(settings: Settings, image: PictureFile) -> list[str]:
    if settings.group is None:
        return []
    name = image.folder if settings.group == "folder" else matched(settings.group, image.name, image.path, "--group")
    return [f"group {name}"]


def _tiles(settings: Settings, own: Form, form: Form) -> list[tuple[int, int]]:
    if settings.resize != "tile":
        return [(0, 0)]
    stride = settings.stride_px
    return tiles_of(own.height, own.width, (form.height, form.width), (stride or form.height, stride or form.width))
