"""Make a data set for classification from labelled pictures: folders, CSV lists, idx files (MNIST) or .npz arrays.

    hpcdl preprocess images --images t10k-images-idx3-ubyte.gz --split order --out data/mnist

`--images` says by itself what it is: a folder with a folder for each class (also below train/, val/, test/), CSV files with
a path and a label in each row, or files of arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep import plan as plans
from hpcdl.prep.pictures.array_files import ArrayFile, is_array_file
from hpcdl.prep.pictures.files import digests_of, expand_paths, forms_of, warn
from hpcdl.prep.pictures.image_arrays import array_files_in, list_arrays, scan, to_picture
from hpcdl.prep.pictures.image_classes import Classes, find_classes
from hpcdl.prep.pictures.image_lists import Columns, Listing, Sample, list_csv, list_folders
from hpcdl.prep.pictures.image_splits import deal, limited, notes_on
from hpcdl.prep.pictures.reading import Form, convert_picture, num_channels, read_picture
from hpcdl.prep.pictures.resizing import common_form, fit_of, resize_picture, target_size
from hpcdl.prep.pictures.tasks import tasks_with_files
from hpcdl.prep.statistics import ImageSums, histogram, image_statistics

Array = npt.NDArray[Any]

# Part of every plan's digest: raise it when the same settings and sources come to mean other bytes.
_REVISION = 1
# Path, array in the file, row in the array (-1: the file is a picture), class index.
Item = tuple[str, str | None, int, int]
_LIST_ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")


FILES = ("images", "labels")
"""Settings that name files or globs: checked before a job is queued."""


@dataclass(frozen=True)
class Settings:
    """What `hpcdl preprocess images` accepts."""

    images: tuple[str, ...]
    """A folder with a folder for each class, CSV files, or idx, .npz or .npy files; globs too"""
    labels: tuple[str, ...] = ()
    """Label files of idx or .npy files, in the order of --images (default for idx: the one beside it)"""
    path_column: str | None = None
    """CSV column of the pictures' paths (default: path, file, filename, image or the like)"""
    label_column: str | None = None
    """CSV column of the classes (default: label, class, category, target or the like)"""
    split_column: str | None = None
    """CSV column that says train, val or test (default: split, if there is one)"""
    root: str | None = None
    """Folder that the paths in a CSV file start from (default: the CSV file's own)"""
    path_ending: str = ""
    """Text to put behind each path of a CSV file, such as .jpg"""
    class_names: tuple[str, ...] = ()
    """Names of the classes in the order of their indices; give it once a name (default: as found, sorted)"""
    mode: Literal["keep", "gray", "rgb", "rgba"] = "keep"
    """Channels of the result; keep needs pictures that are all alike"""
    alpha: Literal["drop", "white", "black"] = "drop"
    """What gray and rgb put behind transparent pixels; drop takes the colour that is stored there"""
    size_px: tuple[int, ...] = ()
    """Size of the result: one number, or height and width (default: as the pictures are, which must be of one size)"""
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    """How pictures come to that size: without regard to proportions, cutting what stands out, or with black margins"""
    limit_per_class: int | None = None
    """Take at most so many samples of each class (of each given split); for small experiments"""
    damaged: Literal["refuse", "drop"] = "refuse"
    """Whether missing and damaged pictures, and rows without a label, are an error or left out and counted"""
    split: Literal["given", "random", "order"] | None = None
    """given: as the input says; random: drawn; order: train first, then val, then test (default: given if there is one)"""
    val_fraction: float = 0.1
    """Share of the samples that go to val; with given splits without val, share of train that is drawn for it"""
    test_fraction: float = 0.1
    """Share of the samples that go to test; unused with given splits"""
    seed: int = 0
    """Draws the splits and the samples within limit_per_class"""
    shard_mb: int = 32
    """Size of a shard, at most, in megabytes"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan(plans.Plan):
    """A plan with what the workers need; `items` of its tasks are (path, member, row, class index)."""

    options: Settings
    form: Form
    classes: Classes
    arrays: Mapping[tuple[str, str | None], ArrayFile]
    notes: tuple[str, ...]


def plan(settings: Settings) -> Plan:
    """Check all inputs, find the classes, and deal the samples to the splits.

    Raises:
        UsageError: a setting or an input is not usable; says which and what to do.
    """
    size = target_size(settings.size_px)
    if settings.shard_mb < 1:
        raise UsageError(f"shard_mb is {settings.shard_mb}; it must be at least 1")
    if settings.limit_per_class is not None and settings.limit_per_class < 1:
        raise UsageError(f"limit_per_class is {settings.limit_per_class}; it must be at least 1")
    listing, arrays = _list(settings)
    samples, digests, form, sources = _look_at(settings, listing, arrays, size)
    classes = find_classes([sample.label for sample in samples], settings.class_names)
    labels = [classes.index(sample.label) for sample in samples]
    kept = limited(samples, labels, digests, settings.limit_per_class, settings.split, settings.seed)
    over = len(samples) - len(kept)
    samples, labels, digests = [samples[n] for n in kept], [labels[n] for n in kept], [digests[n] for n in kept]
    splits = deal(samples, digests, settings.split, settings.val_fraction, settings.test_fraction, settings.seed)
    notes = notes_on(splits, labels, digests, classes)
    tasks, content = tasks_with_files(
        splits,
        [(str(sample.path), sample.member, sample.row, label) for sample, label in zip(samples, labels, strict=True)],
        [f"{digest} {label}" for digest, label in zip(digests, labels, strict=True)],
        [f"{sample.path}" if sample.row < 0 else f"{sample.path} row {sample.row}" for sample in samples],
        form.channels * form.height * form.width * np.dtype(form.dtype).itemsize + 8,
        settings.shard_mb,
    )
    decisive = {key: getattr(settings, key) for key in ("mode", "alpha", "size_px", "resize", "damaged")}
    left_out = {**listing.dropped, **({"num_over_limit": over} if over else {})}
    shape = [form.channels, form.height, form.width]
    return Plan(
        digest=plans.plan_digest("images", _REVISION, decisive, classes.to_json(), content),
        settings=dataclasses.asdict(settings),
        sources=sources,
        fields={"image": {"dtype": form.dtype, "shape": shape}, "label": {"dtype": "int64", "shape": []}},
        shards=tasks,
        # What was left out before the splits were made belongs to none of them; it is told with the first one.
        counts={next(iter(splits)): left_out} if left_out else {},
        options=settings,
        form=form,
        classes=classes,
        arrays={(str(path), member): array for (path, member), array in arrays.items()},
        notes=notes,
    )


def make_shard(plan: Plan, task: plans.ShardTask) -> plans.ShardContent:
    """Read the task's pictures and bring them to their form.

    Raises:
        FailedError: a picture is damaged; names it.
    """
    form, settings = plan.form, plan.options
    images = np.empty((len(task.items), form.channels, form.height, form.width), form.dtype)
    sums = ImageSums(form.channels)
    kept: list[int] = []
    dropped: list[str] = []
    for number, pixels_CHW in _pictures(plan, task.items, dropped):
        fit = fit_of(pixels_CHW.shape[1], pixels_CHW.shape[2], form.height, form.width, settings.resize)
        image_CHW = resize_picture(pixels_CHW, form.height, form.width, settings.resize)
        sums.add(image_CHW[:, *fit.inside(form.height, form.width)])  # margins are no data
        images[len(kept)] = image_CHW
        kept.append(number)
    warn(dropped)
    labels = np.array([task.items[number][3] for number in kept], np.int64)
    sums_of_shard = {"histogram": histogram(labels, len(plan.classes.names)), **sums.attributes()}
    fields = {"image": images[: len(kept)], "label": labels}
    return plans.ShardContent(fields, sums_of_shard, len(task.items) - len(kept))


def manifest_entries(plan: Plan, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Classes, and the statistics of the train split."""
    train = [attributes[task.name] for task in plan.shards if task.split == "train"]
    counts = np.sum([np.asarray(shard["histogram"]) for shard in train], axis=0)
    return {
        "classes": plan.classes.to_json(),
        "statistics": {"image": image_statistics(train), "label": {"histogram": counts.tolist()}},
    }


def summary(plan: Plan, entries: Mapping[str, Any]) -> list[str]:
    """The form of the pictures, what is noteworthy, and the train samples of each class."""
    form = plan.form
    lines = [
        f"pictures: {form.channels} × {form.height} × {form.width} {form.dtype}; classes: {len(plan.classes.names)}"
    ]
    lines += plan.notes
    lines += [
        f"left out: {number} ({name.removeprefix('num_')})" for c in plan.counts.values() for name, number in c.items()
    ]
    counts = entries["statistics"]["label"]["histogram"]
    lines.append(f"{'index':>5} {'train samples':>13} {'share':>7}  class")
    for index, (name, number) in enumerate(zip(plan.classes.names, counts, strict=True)):
        if index == 40:
            lines.append(f"… and {len(counts) - index} more classes")
            break
        lines.append(f"{index:>5} {number:>13} {number / max(1, sum(counts)):>7.2%}  {name}")
    return lines


def _list(settings: Settings) -> tuple[Listing, dict[tuple[Path, str | None], ArrayFile]]:
    """The samples of --images, whatever it is."""
    paths = expand_paths(settings.images, "--images")
    folders = [path for path in paths if path.is_dir()]
    if folders and len(folders) < len(paths):
        raise UsageError(f"--images: {folders[0]} is a folder, but not all of {len(paths)} are; give one kind of input")
    labels = expand_paths(settings.labels, "--labels") if settings.labels else []
    files = [file for folder in folders for file in array_files_in(folder)] if folders else paths
    if files and all(is_array_file(path) for path in files):
        return list_arrays(files, labels)
    if labels:
        raise UsageError(f"--labels goes with idx, .npz or .npy files; {paths[0]} is none")
    if folders:
        return list_folders(folders), {}
    if all(path.name.lower().endswith(_LIST_ENDINGS) for path in paths):
        columns = Columns(
            settings.path_column, settings.label_column, settings.split_column, settings.root, settings.path_ending,
            settings.damaged == "drop", settings.split in (None, "given"),
        )  # fmt: skip
        return list_csv(paths, columns), {}
    odd = next(path for path in paths if not path.name.lower().endswith(_LIST_ENDINGS) and not is_array_file(path))
    raise UsageError(
        f"{odd}: says nothing about classes; --images takes a folder with a folder for each class, CSV files "
        f"({', '.join(_LIST_ENDINGS[:3])}), or idx, .npz or .npy files"
    )


def _look_at(
    settings: Settings,
    listing: Listing,
    arrays: Mapping[tuple[Path, str | None], ArrayFile],
    size: tuple[int, int] | None,
) -> tuple[list[Sample], list[str], Form, tuple[plans.Source, ...]]:
    """The samples that are usable, the digest of each one's pixels or file, the form of the result, and the sources."""
    if not listing.samples:
        raise UsageError(f"--images {' '.join(settings.images)}: no labelled picture is left")
    sources = plans.describe_sources(listing.sources)
    if arrays:
        scanned = {key: scan(array) for key, array in arrays.items()}
        digests = [digest for _, found in scanned.values() for digest in found]
        forms = {
            arrays[key].label: dataclasses.replace(
                form, channels=_channels(form.channels, settings.mode, arrays[key].label)
            )
            for key, (form, _) in scanned.items()
        }
        return listing.samples, digests, common_form(forms, size), sources
    found, damaged = forms_of([sample.path for sample in listing.samples], settings.mode, settings.damaged == "drop")
    samples = [sample for sample in listing.samples if sample.path in found]
    if damaged:
        listing.dropped["num_left_out"] = listing.dropped.get("num_left_out", 0) + len(damaged)
    if not samples:
        raise UsageError(f"--images {' '.join(settings.images)}: every picture is damaged")
    digests, source = digests_of("images", [sample.path for sample in samples])
    form = common_form({str(path): form for path, form in found.items()}, size)
    return samples, digests, form, (*sources, source)


def _channels(channels: int, mode: str, where: str) -> int:
    try:
        return num_channels(channels, channels in (2, 4), mode, where)
    except FailedError as error:
        raise UsageError(str(error)) from None


def _pictures(plan: Plan, items: Sequence[Item], dropped: list[str]) -> Iterator[tuple[int, Array]]:
    """(number of the item, C × H × W) one by one; runs of rows of one array are read in one go."""
    settings, start = plan.options, 0
    while start < len(items):
        path, member, row, _ = items[start]
        end = start + 1
        if row < 0:
            try:
                yield start, read_picture(Path(path), settings.mode, settings.alpha)
            except FailedError as error:
                if settings.damaged == "refuse":
                    raise FailedError(f"{error}; mend it, or leave such files out with --damaged drop") from None
                dropped.append(f"{error}; left out")
        else:
            while end < len(items) and items[end][:2] == (path, member) and items[end][2] > items[end - 1][2]:
                end += 1
            array = plan.arrays[path, member]
            for number, values in enumerate(array.rows([item[2] for item in items[start:end]]), start):
                pixels_CHW = to_picture(values, plan.form.dtype)
                has_alpha = len(pixels_CHW) in (2, 4)
                yield number, convert_picture(pixels_CHW, has_alpha, settings.mode, settings.alpha, array.label)
        start = end
