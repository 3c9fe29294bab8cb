"""Make a data set of picture pairs: high and low resolution, two domains without pairs, or two domains paired by name.

    hpcdl preprocess pairs --high 'set14/*_HR.png' --factor 4 --patch-px 96 --mode rgb --out data/super
    hpcdl preprocess pairs --a peru_1985 --b peru_2020 --patch-px 64 --out data/peru

With --high each sample has the fields high and low (made of it, or from --low); with --a and --b the fields a and b.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep import plan as plans
from hpcdl.prep.pictures.files import warn
from hpcdl.prep.pictures.pair_inputs import Pair, find_domains, find_pairs, find_scales
from hpcdl.prep.pictures.pair_reading import Reading, leave_out_blank
from hpcdl.prep.pictures.pair_samples import Picture, Sample, check_splits, cut, repeated, split_areas, with_partners
from hpcdl.prep.pictures.reading import Form
from hpcdl.prep.pictures.resizing import common_form, target_size
from hpcdl.prep.pictures.tasks import tasks_with_files
from hpcdl.prep.statistics import ImageSums, image_statistics

Array = npt.NDArray[Any]

# Part of every plan's digest: raise it when the same settings and sources come to mean other bytes.
_REVISION = 1


FILES = ("high", "low", "a", "b")
"""Settings that name files or globs: checked before a job is queued."""


@dataclass(frozen=True)
class Settings:
    """What `hpcdl preprocess pairs` accepts."""

    high: tuple[str, ...] = ()
    """Folders, files or globs of pictures in high resolution (super-resolution)"""
    low: tuple[str, ...] = ()
    """The same pictures in low resolution, paired by name (default: made from --high by bicubic shrinking)"""
    a: tuple[str, ...] = ()
    """Folders, files or globs of domain a (image to image)"""
    b: tuple[str, ...] = ()
    """Folders, files or globs of domain b"""
    paired: bool = False
    """Picture n of a and of b show the same, paired by name; else they are two domains without pairs"""
    pair_strip: tuple[str, ...] = ()
    """Text at the start or end of names that is no part of the pair's name, such as _HR"""
    pair_name: str | None = None
    """Regular expression searched in names; what its groups match is the name to pair by"""
    unpaired: Literal["refuse", "drop"] = "refuse"
    """Whether a picture without a partner is an error or left out and counted; for inputs that are paired"""
    factor: int = 4
    """How many times larger high is than low"""
    patch_px: int | None = None
    """Height and width of a patch (of high); default: whole pictures"""
    stride_px: int | None = None
    """Pixels from one patch to the next (default: patch_px, no overlap)"""
    size_px: tuple[int, ...] = ()
    """Resize whole pictures of a and b: one number, or height and width"""
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    """How pictures come to that size: without regard to proportions, cutting what stands out, or with black margins"""
    mode: Literal["keep", "gray", "rgb", "rgba"] = "keep"
    """Channels of the result; keep needs pictures that are all alike, and leaves the bands of a GeoTIFF"""
    alpha: Literal["drop", "white", "black"] = "drop"
    """What gray and rgb put behind transparent pixels; drop takes the colour that is stored there"""
    min_valid: float = 0.0
    """Leave out patches of which a smaller share than this has data, that is, is not 0 in all channels"""
    damaged: Literal["refuse", "drop"] = "refuse"
    """Whether a damaged picture is an error or left out and counted"""
    split: Literal["random", "order", "region"] | None = None
    """random: pictures are drawn; order: the first ones train; region: each picture is cut into a strip for each split
    (default: region where a domain has a single picture, else random)"""
    val_fraction: float = 0.1
    """Share that goes to val"""
    test_fraction: float = 0.1
    """Share that goes to test"""
    seed: int = 0
    """Draws the splits, and shuffles domain b where there are no pairs"""
    shard_mb: int = 32
    """Size of a shard, at most, in megabytes"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan(plans.Plan):
    """A plan with what the workers need; `items` of its tasks are pairs of parts, the second None where it is made."""

    options: Settings
    forms: Mapping[str, Form]
    reading: Reading
    entries: Mapping[str, Any]
    notes: tuple[str, ...]


def plan(settings: Settings) -> Plan:
    """Check all inputs, pair them, deal them to the splits and cut them up.

    Raises:
        UsageError: a setting or an input is not usable; says which and what to do.
    """
    size = target_size(settings.size_px)
    _check(settings, size)
    pairs: Sequence[Pair] = ()
    if settings.high:
        pairs, sources, left_out = find_scales(settings)
        domains: list[list[Picture]] = [[pair.first for pair in pairs]]
    elif settings.paired:
        pairs, sources, left_out = find_pairs(settings, size is None)
        domains = [[pair.first for pair in pairs]]
    else:
        domains, sources, left_out = find_domains(settings)
    single = min(map(len, domains)) == 1 and size is None
    split = settings.split or ("region" if single else "random")
    if split == "region" and settings.patch_px is None:
        raise UsageError(
            "split region cuts pictures (a domain of a single one is cut always) into strips of different sizes; give the "
            "size of patches with --patch-px"
        )
    names = ("high", "low") if settings.high else ("a", "b")
    areas, regions = split_areas(
        dict(zip(names, domains, strict=False)), split, settings.val_fraction, settings.test_fraction, settings.seed
    )
    multiple = settings.factor if settings.high else 1
    parts = [
        cut(pictures, own, settings.patch_px, settings.stride_px, multiple)
        for pictures, own in zip(domains, areas, strict=True)
    ]
    seconds = {str(pair.first.path): pair.second for pair in pairs}
    if settings.min_valid > 0:
        leave_out_blank(parts, seconds, multiple, size is not None, settings)
    counts: dict[str, dict[str, int]] = {}
    for name, domain in zip(names, parts, strict=False):
        for what, numbers in (("small", domain.num_small), ("blank", domain.num_blank)):
            for key, number in numbers.items():
                counts.setdefault(key, {})[f"num_{what}_{name}"] = number
    entries: dict[str, Any] = {"strips": regions} if regions else {}
    if len(domains) == 2:
        items, contents = repeated(parts[0], parts[1], settings.seed)
        for name, domain in zip(names, parts, strict=True):
            for key, members in domain.parts.items():
                counts.setdefault(key, {})[f"num_distinct_{name}"] = len(members)
        entries["domains"] = {n: sum(map(len, d.parts.values())) for n, d in zip(names, parts, strict=True)}
    else:
        items, contents = with_partners(parts[0], seconds, multiple, size is not None)
        entries.update({"factor": settings.factor} if settings.high else {})
    items = {key: items[key] for key in plans.SPLITS if items.get(key)}
    check_splits(items, settings.val_fraction, settings.test_fraction)
    forms = _forms(settings, size, names, domains, pairs, items)
    if left_out:
        counts.setdefault(next(iter(items)), {}).update(left_out)
    flat = [item for members in items.values() for item in members]
    starts = np.cumsum([0, *map(len, items.values())]).tolist()
    tasks, content = tasks_with_files(
        {key: np.arange(starts[n], starts[n + 1]) for n, key in enumerate(items)},
        flat,
        [text for key in items for text in contents[key]],
        [first.path for first, _ in flat],
        sum(f.channels * f.height * f.width * np.dtype(f.dtype).itemsize for f in forms.values()),
        settings.shard_mb,
    )
    decisive = {key: getattr(settings, key) for key in ("mode", "alpha", "size_px", "resize", "damaged", "factor")}
    return Plan(
        digest=plans.plan_digest("pairs", _REVISION, decisive, names, bool(settings.low), content),
        settings=dataclasses.asdict(settings),
        sources=sources,
        fields={name: {"dtype": f.dtype, "shape": [f.channels, f.height, f.width]} for name, f in forms.items()},
        shards=tasks,
        counts={key: counts[key] for key in items if key in counts},
        options=settings,
        forms=forms,
        reading=Reading(
            settings.mode,
            settings.alpha,
            size,
            settings.resize,
            settings.factor if settings.high and not settings.low else None,
        ),
        entries=entries,
        notes=(f"pictures: {' and '.join(str(len(pictures)) for pictures in domains)}; split by {split}",),
    )


def make_shard(plan: Plan, task: plans.ShardTask) -> plans.ShardContent:
    """Read the task's parts; where low is not given, it is made from high.

    Raises:
        FailedError: a picture is damaged; names it.
    """
    names = list(plan.forms)
    count = len(task.items)
    arrays = {n: np.empty((count, f.channels, f.height, f.width), f.dtype) for n, f in plan.forms.items()}
    failed: dict[int, str] = {}
    for side, name in enumerate(names):
        by_path: dict[str, list[int]] = {}
        for number, item in enumerate(task.items):
            if item[side] is not None:
                by_path.setdefault(item[side].path, []).append(number)
        for path, numbers in by_path.items():
            parts = [task.items[number][side] for number in numbers]
            shrunk = arrays["low"] if side == 0 and plan.reading.factor else None
            try:
                plan.reading.fill(Path(path), parts, numbers, arrays[name], shrunk)
            except FailedError as error:
                if plan.options.damaged == "refuse":
                    raise FailedError(f"{error}; mend it, or leave such files out with --damaged drop") from None
                failed.update(dict.fromkeys(numbers, f"{error}; left out"))
    warn(dict.fromkeys(failed.values()))
    kept = np.array([number for number in range(count) if number not in failed], np.int64)
    attributes: dict[str, Any] = {}
    for side, name in enumerate(names):
        sums = ImageSums(plan.forms[name].channels)
        for number in kept.tolist():
            part = task.items[number][side]
            sums.add(arrays[name][number] if part is None else plan.reading.inside(arrays[name][number], part))
        attributes.update(sums.attributes(name))
    return plans.ShardContent({name: array[kept] for name, array in arrays.items()}, attributes, len(failed))


def manifest_entries(plan: Plan, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The statistics of both fields, and what kind of pairs these are."""
    train = [attributes[task.name] for task in plan.shards if task.split == "train"]
    return {**plan.entries, "statistics": {name: image_statistics(train, name) for name in plan.forms}}


def summary(plan: Plan, entries: Mapping[str, Any]) -> list[str]:
    """The fields, how many samples of a domain are distinct, and what was left out."""
    lines = [*plan.notes]
    for name, form in plan.forms.items():
        means = ", ".join(f"{mean:.1f}" for mean in entries["statistics"][name]["mean"])
        lines.append(f"{name}: {form.channels} × {form.height} × {form.width} {form.dtype}; train means {means}")
    if "domains" in plan.entries:
        a, b = plan.entries["domains"].values()
        lines.append(f"distinct samples: a {a}, b {b}" + ("" if a == b else "; the shorter domain is repeated"))
    for split, counts in plan.counts.items():
        told = [f"{key.removeprefix('num_').replace('_', ' ')} {number}" for key, number in counts.items()]
        lines.append(f"{split}: {', '.join(told)}")
    return lines


def _check(settings: Settings, size: tuple[int, int] | None) -> None:
    for name in ("patch_px", "stride_px", "shard_mb"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")
    if not 0 <= settings.min_valid <= 1:
        raise UsageError(f"min_valid is {settings.min_valid}; it is a share from 0 to 1")
    if bool(settings.high) == bool(settings.a or settings.b):
        raise UsageError("pairs needs either --high (and perhaps --low), or --a and --b")
    if settings.low and not settings.high:
        raise UsageError("--low needs --high; for two domains give --a and --b")
    if not settings.high and not (settings.a and settings.b):
        raise UsageError("image to image needs both domains: give --a and --b")
    if settings.high and (settings.paired or size is not None):
        raise UsageError(
            "--paired and --size-px go with --a and --b; pictures of --high are cut to patches by --patch-px"
        )
    if size is not None and (settings.patch_px is not None or settings.split == "region"):
        raise UsageError("--size-px takes whole pictures; leave out --patch-px, and use --split random or order")
    if settings.stride_px is not None and settings.patch_px is None:
        raise UsageError("--stride-px needs --patch-px")
    if settings.high:
        if settings.factor < 2:
            raise UsageError(f"factor is {settings.factor}; it must be at least 2")
        for name in ("patch_px", "stride_px"):
            value = getattr(settings, name)
            if value is not None and value % settings.factor:
                raise UsageError(f"{name} is {value}; it must be a multiple of the factor, {settings.factor}")


def _forms(
    settings: Settings,
    size: tuple[int, int] | None,
    names: Sequence[str],
    domains: Sequence[Sequence[Picture]],
    pairs: Sequence[Pair],
    items: Mapping[str, Sequence[Sample]],
) -> dict[str, Form]:
    """The form of each field: all samples must come to one size."""
    seconds = [pair.second for pair in pairs if pair.second is not None] if pairs else domains[1]
    forms: dict[str, Form] = {}
    for side, (name, pictures) in enumerate(zip(names, (domains[0], seconds), strict=True)):
        by_path = {str(picture.path): picture.form for picture in pictures}
        parts = {item[side] for members in items.values() for item in members} - {None}
        own = {
            f"{p.path} (in {p.area})": dataclasses.replace(by_path[p.path], height=p.box[2], width=p.box[3])
            for p in parts
            if p
        }
        if own:
            advice = (
                "cut patches with --patch-px"
                if settings.high
                else "resize them with --size-px, or cut patches with --patch-px"
            )
            forms[name] = common_form(dict(sorted(own.items())), size, advice)
    if settings.high and not settings.low:
        high = forms["high"]
        scale = settings.factor
        forms["low"] = dataclasses.replace(high, height=high.height // scale, width=high.width // scale)
    return forms
