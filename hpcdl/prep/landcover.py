"""Cut georeferenced images and a land-cover raster into chips, as HDF5 shards ready for training.

    hpcdl preprocess landcover --images 'landsat_b*.tif' --labels nlcd2011.tif --test-region east:0.3 -o data/zion

Images are warped onto the labels' grid (or the labels onto the images', with --grid image); files on one grid are the
bands of one scene, files on another grid are a further scene.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hpcdl.errors import UsageError
from hpcdl.prep import plan as plans
from hpcdl.prep.chips import Rect
from hpcdl.prep.splits import Layout, SplitRules, lay_out
from hpcdl.raster.grid import Grid
from hpcdl.raster.labels import Labels, open_labels
from hpcdl.raster.legend import IGNORE_INDEX, ClassMap, load_legend
from hpcdl.raster.scene import Scenes, open_scenes
from hpcdl.shards.writer import write_shard_file

# Part of every plan's digest: raise it when the same settings and sources come to mean other bytes.
_REVISION = 1


@dataclass(frozen=True)
class Settings:
    """What `hpcdl preprocess landcover` accepts."""

    images: tuple[str, ...]
    """Image files or globs; files on one grid are stacked as bands in this order"""
    labels: str
    """Raster of class codes"""
    legend: str = "nlcd"
    """Legend of the codes: a name in configs/legends, or a YAML file"""
    classes: str | None = None
    """YAML file that merges or renames codes: classes: [{code, name, color, from: [codes]}], ignore: [codes]"""
    all_classes: bool = False
    """Keep the legend's classes that do not occur, too"""
    grid: Literal["labels", "image"] = "labels"
    """Whose pixels the chips have; the other one is resampled onto them"""
    resampling: Literal["nearest", "bilinear", "cubic", "cubicspline", "lanczos", "average"] = "bilinear"
    """How images are brought onto another grid"""
    label_resampling: Literal["nearest", "mode"] = "nearest"
    """How labels are brought onto the image's grid: the nearest code, or the most frequent one under the pixel"""
    image_crs: str | None = None
    """Coordinate system of images that carry none, such as EPSG:32612"""
    label_crs: str | None = None
    """Coordinate system of labels that carry none"""
    chip_px: int = 128
    """Height and width of a chip in pixels"""
    stride_px: int | None = None
    """Pixels from one chip to the next (default: chip_px, no overlap)"""
    train_stride_px: int | None = None
    """The same for the train split only (default: stride_px)"""
    min_valid: float = 0.5
    """Drop a chip when a smaller share of its pixels than this has both image data and a label"""
    test_fraction: float = 0.2
    """Share of the blocks that go to test; unused with test_region"""
    val_fraction: float = 0.1
    """Share of the blocks that go to val; unused with val_region"""
    block_px: int | None = None
    """Size of a block in pixels (default: the largest multiple of chip_px that gives 20 blocks)"""
    buffer_px: int | None = None
    """Distance kept free between splits, in pixels (default: chip_px)"""
    test_region: str | None = None
    """Test area: a side and its share, such as east:0.3 (west, north, south), or bbox:minx,miny,maxx,maxy"""
    val_region: str | None = None
    """Validation area, written as test_region is"""
    seed: int = 0
    """Draws the blocks"""
    shard_mb: int = 32
    """Size of a shard, at most, in megabytes"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan(plans.Plan):
    """A plan with what the workers read from; `items` of its tasks are chips, N × 2 (row, col)."""

    scenes: Scenes
    labels: Labels
    grid: Grid
    class_map: ClassMap
    regions: Mapping[str, list[Rect]]
    options: Settings


def plan(settings: Settings) -> Plan:
    """Check all inputs, choose the target grid, the classes, the splits and the chips.

    Raises:
        UsageError: a setting or an input file is not usable; says which and what to do.
    """
    _check_numbers(settings)
    scenes = open_scenes(settings.images, settings.image_crs)
    labels = open_labels(settings.labels, settings.label_crs)
    grid = _target_grid(settings, scenes, labels)
    legend = load_legend(settings.legend, settings.classes)
    counts = labels.count(grid, settings.label_resampling)
    class_map = legend.select(counts, labels.path, settings.all_classes)
    layout = lay_out(grid, _rules(settings))

    chip, bands = settings.chip_px, scenes.num_bands
    fill: float | str = "nan" if math.isnan(scenes.fill) else 0
    fields: dict[str, dict[str, Any]] = {
        "image": {"dtype": scenes.dtype, "shape": [bands, chip, chip], "fill": fill},
        "label": {"dtype": "uint8", "shape": [chip, chip]},
        "row": {"dtype": "int32", "shape": []},
        "col": {"dtype": "int32", "shape": []},
        "transform": {"dtype": "float64", "shape": [6]},
    }
    roles = [*(("image", path) for path in scenes.paths), ("label", labels.path), ("legend", legend.path)]
    sources = plans.describe_sources(roles)
    # Names of files decide nothing: a data set stays the same when its sources move.
    content = [[s.role, s.sha256] for s in sources if s.role != "legend"]
    named = ("images", "labels", "legend", "classes")
    decisive = {key: value for key, value in dataclasses.asdict(settings).items() if key not in named}
    tasks = _tasks(layout, settings, scenes)
    chips = [[task.name, hashlib.sha256(task.items.tobytes()).hexdigest()] for task in tasks]
    return Plan(
        digest=plans.plan_digest("landcover", _REVISION, decisive, content, chips, grid.to_json(), class_map.to_json()),
        settings=dataclasses.asdict(settings),
        sources=sources,
        fields=fields,
        shards=tasks,
        counts={split: {"num_buffer": number} for split, number in layout.num_buffer.items()},
        scenes=scenes,
        labels=labels,
        grid=grid,
        class_map=class_map,
        regions=layout.regions,
        options=settings,
    )


def write_shard(plan: Plan, task: plans.ShardTask, path: Path) -> None:
    """Read the task's chips and write them; chips with too few valid pixels are dropped and counted.

    Raises:
        FailedError: a source is damaged where a chip lies; names file and window.
        OSError: the shard cannot be written.
    """
    settings, grid, chip = plan.options, plan.grid, plan.options.chip_px
    images, labels, corners = [], [], []
    bands, classes = plan.scenes.num_bands, len(plan.class_map.classes)
    total, squares = np.zeros(bands), np.zeros(bands)
    count, histogram = np.zeros(bands, np.int64), np.zeros(classes, np.int64)
    for row, col in task.items.tolist():
        image_CHW, valid_HW = plan.scenes.read(grid, row, col, chip, chip, settings.resampling)
        codes_HW = plan.labels.read_on(grid, row, col, chip, chip, settings.label_resampling)
        label_HW = np.where(valid_HW, plan.class_map.indices(codes_HW), np.uint8(IGNORE_INDEX))
        counted_HW = label_HW != IGNORE_INDEX
        if counted_HW.mean() < settings.min_valid or not counted_HW.any():
            continue
        images.append(image_CHW)
        labels.append(label_HW)
        corners.append((row, col))
        pixels = image_CHW[:, valid_HW].astype(np.float64)
        total += pixels.sum(axis=1)
        squares += np.square(pixels).sum(axis=1)
        count += int(valid_HW.sum())
        histogram += np.bincount(label_HW[counted_HW], minlength=classes)
    places = np.array(corners, np.int32).reshape(-1, 2)
    fields = {
        "image": np.array(images, plan.scenes.dtype).reshape(-1, bands, chip, chip),
        "label": np.array(labels, np.uint8).reshape(-1, chip, chip),
        "row": places[:, 0],
        "col": places[:, 1],
        "transform": np.array([grid.window_transform(row, col) for row, col in corners], np.float64).reshape(-1, 6),
    }
    sums = {"sum": total, "sum_squares": squares, "count": count, "histogram": histogram}
    num_dropped = len(task.items) - len(corners)
    write_shard_file(path, fields, {"plan": plan.digest, "split": task.split, "num_dropped": num_dropped, **sums})


def manifest_entries(plan: Plan, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Classes, bands, statistics of the train split, grid and regions; see docs/shard-format.md."""
    train = [attributes[task.name] for task in plan.shards if task.split == "train"]
    total, squares, count, histogram = (
        np.sum([np.asarray(shard[key]) for shard in train], axis=0)
        for key in ("sum", "sum_squares", "count", "histogram")
    )
    mean = total / np.maximum(count, 1)
    std = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
    return {
        "classes": plan.class_map.to_json(),
        "ignore_index": IGNORE_INDEX,
        "bands": list(plan.scenes.band_names),
        "statistics": {
            "image": {"mean": mean.tolist(), "std": std.tolist(), "count": count.tolist()},
            "label": {"histogram": histogram.tolist()},
        },
        "grid": {**plan.grid.to_json(), "chip_px": plan.options.chip_px},
        "regions": {split: [list(rect) for rect in rects] for split, rects in plan.regions.items()},
    }


def summary(plan: Plan, entries: Mapping[str, Any]) -> list[str]:
    """The grid and a table of the classes with their share of the train pixels."""
    grid = plan.grid
    histogram = entries["statistics"]["label"]["histogram"]
    lines = [
        f"grid: {grid.height} × {grid.width} pixels of {abs(grid.transform[0]):.6g}, {grid.name}; "
        f"bands: {', '.join(plan.scenes.band_names)}",
        f"{'index':>5} {'code':>5} {'train pixels':>13} {'share':>7}  class",
    ]
    for entry, pixels in zip(entries["classes"], histogram, strict=True):
        share = pixels / max(1, sum(histogram))
        lines.append(f"{entry['index']:>5} {entry['code']:>5} {pixels:>13} {share:>7.2%}  {entry['name']}")
    return lines


def _check_numbers(settings: Settings) -> None:
    for name in ("chip_px", "stride_px", "train_stride_px", "block_px", "shard_mb"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")
    if settings.buffer_px is not None and settings.buffer_px < 0:
        raise UsageError(f"buffer_px is {settings.buffer_px}; it must be 0 or more")
    if settings.block_px is not None and settings.block_px < settings.chip_px:
        raise UsageError(
            f"block_px is {settings.block_px}; a block must hold a chip: at least chip_px, {settings.chip_px}"
        )
    for name in ("min_valid", "test_fraction", "val_fraction"):
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            raise UsageError(f"{name} is {value}; it is a share from 0 to 1")
    if settings.test_fraction + settings.val_fraction >= 1:
        raise UsageError(
            f"test_fraction {settings.test_fraction} and val_fraction {settings.val_fraction} leave nothing to train"
        )


def _target_grid(settings: Settings, scenes: Scenes, labels: Labels) -> Grid:
    """The labels' or the images' own pixels, cropped to where the other one lies."""
    if settings.grid == "labels":
        whole, other = labels.grid, scenes.bounds_in(labels.grid.crs)
    else:
        whole = scenes.grid
        other = labels.grid.bounds_in(whole.crs)
    part = whole.cropped(other)
    if part is None:
        image_box, label_box = scenes.bounds_in(whole.crs), labels.grid.bounds_in(whole.crs)
        raise UsageError(
            f"{labels.path}: the labels do not overlap the images; in {whole.name} the labels cover {_box(label_box)} "
            f"and the images {_box(image_box)} (min x, min y, max x, max y); check that the files belong together and "
            "that their coordinate systems are right"
        )
    return part


def _box(bounds: tuple[float, float, float, float]) -> str:
    return "(" + ", ".join(f"{number:.10g}" for number in bounds) + ")"


def _rules(settings: Settings) -> SplitRules:
    stride = settings.stride_px or settings.chip_px
    return SplitRules(
        chip_px=settings.chip_px,
        strides_px={"train": settings.train_stride_px or stride, "val": stride, "test": stride},
        buffer_px=settings.chip_px if settings.buffer_px is None else settings.buffer_px,
        block_px=settings.block_px,
        test_fraction=settings.test_fraction,
        val_fraction=settings.val_fraction,
        test_region=settings.test_region,
        val_region=settings.val_region,
        seed=settings.seed,
    )


def _tasks(layout: Layout, settings: Settings, scenes: Scenes) -> tuple[plans.ShardTask, ...]:
    chip = settings.chip_px
    sample_bytes = chip * chip * (scenes.num_bands * np.dtype(scenes.dtype).itemsize + 1) + 2 * 4 + 6 * 8
    tasks: list[plans.ShardTask] = []
    for split in plans.SPLITS:
        if split not in layout.chips:
            continue
        chips = layout.chips[split]
        num_shards = math.ceil(len(chips) * sample_bytes / (settings.shard_mb * 1e6))
        # Shards of a split differ by one chip at most, so workers end together.
        for number, part in enumerate(np.array_split(chips, min(num_shards, len(chips)))):
            where = f"chips at rows {part[0][0]}–{part[-1][0]} of the target grid"
            tasks.append(plans.ShardTask(f"{split}-{number:05d}", split, part, where, len(part) * sample_bytes))
    return tuple(tasks)
