"""Cut georeferenced images and a land-cover raster into chips, as HDF5 shards ready for training.

    hpcdl preprocess landcover --images 'landsat_b*.tif' --labels nlcd2011.tif --test-region east:0.3 -o data/zion

Images are warped onto the labels' grid (or the labels onto the images', with --grid image); files on one grid are the
bands of one scene, files on another grid are a further scene. Many scenes make one data set; clouds are left out by their
quality bands, and splits follow from map coordinates, so that no place trains in one scene and tests in another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hpcdl.errors import UsageError
from hpcdl.prep import plan as plans
from hpcdl.prep.chips import Chips
from hpcdl.prep.distance import smallest_distance
from hpcdl.prep.splits import Layout, SplitRules, lay_out
from hpcdl.prep.statistics import Array, ImageSums, histogram, image_statistics
from hpcdl.raster.grid import Grid
from hpcdl.raster.labels import Labels, open_labels
from hpcdl.raster.legend import IGNORE_INDEX, ClassMap, load_legend
from hpcdl.raster.scene import SceneOptions, Scenes, open_scenes
from hpcdl.raster.source import MASKED_RESAMPLINGS

# Part of every plan's digest: raise it when the same settings and sources come to mean other bytes.
_REVISION = 2
# Chips are read together, region by region: large enough that a region's rim costs little, small enough for memory.
_REGION_PX = 1024
# Regions come in strips no wider than this: GDAL's cache then still holds the strip above.
_STRIP_PX = 4096


FILES = ("images", "labels", "quality")
"""Settings that name files or globs: checked before a job is queued."""


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
    scene_by: Literal["grid", "folder"] = "grid"
    """Files on one grid, or in one folder, are the bands of one scene"""
    mosaic: Literal["first", "last", "median"] = "first"
    """Where scenes overlap: the first or the last one with data, or the median of all"""
    scale: tuple[str, ...] = ()
    """Gain and offset: GAIN,OFFSET, a name in configs/scales (landsat-c2-sr), or file (what each file declares); once for all
    scenes, or once for each"""
    quality: tuple[str, ...] = ()
    """Quality bands, files or globs: one for each scene"""
    quality_legend: str = "landsat-c2"
    """What their codes mean: a name in configs/quality (landsat-c2, sentinel2-scl), or a YAML file"""
    mask: tuple[str, ...] = ()
    """Flags of the quality bands that leave a pixel out, such as cloud (default: those that the legend names)"""
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
    """Size of the blocks that a split is drawn from by map coordinates, in pixels (default: 8 chips; in a scene too small
    for blocks the splits lie side by side)"""
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
    layout: Layout
    options: Settings


def scene_options(settings: Settings) -> SceneOptions:
    """How the settings put scenes together."""
    return SceneOptions(
        scene_by=settings.scene_by,
        mosaic=settings.mosaic,
        scale=settings.scale,
        quality=settings.quality,
        quality_legend=settings.quality_legend,
        mask=settings.mask,
        crs=settings.image_crs,
    )


def plan(settings: Settings) -> Plan:
    """Check all inputs, choose the target grid, the classes, the splits and the chips.

    Raises:
        UsageError: a setting or an input file is not usable; says which and what to do.
    """
    _check_numbers(settings)
    scenes = open_scenes(settings.images, scene_options(settings))
    labels = open_labels(settings.labels, settings.label_crs)
    grid = _target_grid(settings, scenes, labels)
    legend = load_legend(settings.legend, settings.classes)
    roles = [*(("image", path) for path in scenes.paths), *(("quality", path) for path in scenes.quality_paths)]
    with ThreadPoolExecutor(1) as pool:
        # Both read whole files, and neither needs the other.
        described = pool.submit(plans.describe_sources, [*roles, ("label", labels.path), ("legend", legend.path)])
        counts = labels.count(grid, settings.label_resampling)
        sources = described.result()
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
    # Names of files decide nothing: a data set stays the same when its sources move.
    content = [[s.role, s.sha256] for s in sources if s.role != "legend"]
    named = ("images", "labels", "legend", "classes", "quality", "quality_legend")
    decisive = {key: value for key, value in dataclasses.asdict(settings).items() if key not in named}
    tasks = _tasks(layout, settings, scenes)
    chips = [[task.name, hashlib.sha256(task.items.tobytes()).hexdigest()] for task in tasks]
    return Plan(
        digest=plans.plan_digest(
            "landcover", _REVISION, decisive, content, chips, grid.to_json(), class_map.to_json(), scenes.to_json()
        ),
        settings=dataclasses.asdict(settings),
        sources=sources,
        fields=fields,
        shards=tasks,
        counts={split: {"num_buffer": number} for split, number in layout.num_buffer.items()},
        scenes=scenes,
        labels=labels,
        grid=grid,
        class_map=class_map,
        layout=layout,
        options=settings,
    )


def make_shard(plan: Plan, task: plans.ShardTask) -> plans.ShardContent:
    """Read the task's chips; those with too few valid pixels are dropped and counted.

    Raises:
        FailedError: a source is damaged where a chip lies; names file and window.
    """
    settings, chip = plan.options, plan.options.chip_px
    bands, classes, most = plan.scenes.num_bands, len(plan.class_map.classes), len(task.items)
    image_NCHW = np.empty((most, bands, chip, chip), plan.scenes.dtype)
    label_NHW = np.empty((most, chip, chip), np.uint8)
    places = np.empty((most, 2), np.int32)
    sums, counted, kept = ImageSums(bands), np.zeros(classes, np.int64), 0
    left_out: list[tuple[int, int]] = []
    for chips in _read_together(task.items, chip, plan.layout.origin):
        (top, left), (bottom, right) = chips.min(axis=0).tolist(), (chips.max(axis=0) + chip).tolist()
        image_CHW, valid_HW, label_HW = _read(plan, top, left, bottom - top, right - left)
        for row, col in chips.tolist():
            window = (slice(row - top, row - top + chip), slice(col - left, col - left + chip))
            num_labelled = np.count_nonzero(label_HW[window] != IGNORE_INDEX)
            if num_labelled < settings.min_valid * chip * chip or num_labelled == 0:
                left_out.append((row, col))
                continue
            image_NCHW[kept], label_NHW[kept], places[kept] = image_CHW[:, *window], label_HW[window], (row, col)
            sums.add(image_NCHW[kept], valid_HW[window])
            counted += histogram(label_NHW[kept], classes)
            kept += 1
    image_NCHW, label_NHW, places = image_NCHW[:kept], label_NHW[:kept], places[:kept]
    fields = {
        "image": image_NCHW,
        "label": label_NHW,
        "row": places[:, 0],
        "col": places[:, 1],
        "transform": np.array([plan.grid.window_transform(*p) for p in places.tolist()], np.float64).reshape(-1, 6),
    }
    dropped = np.array(left_out, np.int32).reshape(-1, 2)
    attributes = {"histogram": counted, "dropped": dropped.ravel(), **sums.attributes()}
    return plans.ShardContent(fields, attributes, len(dropped))


def _read(plan: Plan, row: int, col: int, height: int, width: int) -> tuple[Array, Array, Array]:
    """Image C × H × W, its mask and dense labels H × W of a window; the label is IGNORE_INDEX where the image has no data."""
    settings = plan.options
    image_CHW, valid_HW = plan.scenes.read(plan.grid, row, col, height, width, settings.resampling)
    label_HW = plan.labels.read_classes(plan.class_map, plan.grid, row, col, height, width, settings.label_resampling)
    label_HW[~valid_HW] = IGNORE_INDEX
    return image_CHW, valid_HW, label_HW


def _read_together(chips: Chips, chip_px: int, origin: tuple[int, int]) -> Iterator[Chips]:
    """The chips in groups whose surrounding window is read at once: those of one region, or each where they lie scattered."""
    regions = (chips - origin) // _REGION_PX
    borders = np.flatnonzero((np.diff(regions, axis=0) != 0).any(axis=1)) + 1
    for group in np.split(chips, borders):
        height, width = (group.max(axis=0) - group.min(axis=0) + chip_px).tolist()
        if height * width > 2 * len(group) * chip_px**2:
            yield from np.split(group, len(group))
        else:
            yield group


def manifest_entries(plan: Plan, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Classes, bands, statistics of the train split, grid and regions; see docs/shard-format.md."""
    train = [attributes[task.name] for task in plan.shards if task.split == "train"]
    counted = np.sum([np.asarray(shard["histogram"]) for shard in train], axis=0)
    return {
        "classes": plan.class_map.to_json(),
        "ignore_index": IGNORE_INDEX,
        "bands": list(plan.scenes.band_names),
        "statistics": {
            "image": image_statistics(train),
            "label": {"histogram": counted.tolist()},
        },
        "grid": {**plan.grid.to_json(), "chip_px": plan.options.chip_px},
        "regions": {split: [list(rect) for rect in rects] for split, rects in plan.layout.regions.items()},
        "splits_by": plan.layout.method,
        "distances": _distances(plan, attributes),
    }


def _distances(plan: Plan, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of each two splits the smallest distance between their pixels' centres, in pixels and in metres of the grid."""
    chips: dict[str, list[Chips]] = {}
    for task in plan.shards:
        dropped = set(map(tuple, np.reshape(attributes[task.name]["dropped"], (-1, 2)).tolist()))
        kept = [tuple(place) not in dropped for place in task.items.tolist()] if dropped else slice(None)
        chips.setdefault(task.split, []).append(task.items[kept])
    found: dict[str, Any] = {}
    for one, other in itertools.combinations(chips, 2):
        apart = smallest_distance(np.concatenate(chips[one]), np.concatenate(chips[other]), plan.options.chip_px)
        if apart is not None:
            found[f"{one}-{other}"] = {"px": apart, "map_units": apart * plan.grid.pixel_size}
    return found


def summary(plan: Plan, entries: Mapping[str, Any]) -> list[str]:
    """The grid and a table of the classes with their share of the train pixels."""
    grid = plan.grid
    counted = entries["statistics"]["label"]["histogram"]
    apart = [f"{names} {entry['px']:.6g} pixels" for names, entry in entries["distances"].items()]
    lines = [
        f"splits by {plan.layout.method}; smallest distance: {', '.join(apart) or 'one split only'}",
        f"grid: {grid.height} × {grid.width} pixels of {abs(grid.transform[0]):.6g}, {grid.name}; "
        f"bands: {', '.join(plan.scenes.band_names)}",
        f"{'index':>5} {'code':>5} {'train pixels':>13} {'share':>7}  class",
    ]
    for entry, pixels in zip(entries["classes"], counted, strict=True):
        share = pixels / max(1, sum(counted))
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
    if settings.quality and settings.resampling not in MASKED_RESAMPLINGS:
        raise UsageError(
            f"resampling {settings.resampling!r} would mix what the quality bands leave out into its neighbours; choose one "
            f"of: {', '.join(MASKED_RESAMPLINGS)}"
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

    def where(split: str, chips: Chips) -> str:
        (row0, col0), (row1, col1) = chips.min(axis=0).tolist(), (chips.max(axis=0) + chip).tolist()
        return f"{split} chips in rows {row0}–{row1}, columns {col0}–{col1} of the target grid"

    chips = {split: _by_region(found, layout.origin) for split, found in layout.chips.items()}
    return plans.shard_tasks(chips, sample_bytes, settings.shard_mb, where)


def _by_region(chips: Chips, origin: tuple[int, int]) -> Chips:
    """Chips region by region, so that a shard's chips lie together on the map and share what is read for them.

    Regions lie on the lattice that splits are drawn from, so that most of them are of one split.
    """
    row, col = (chips - origin).T
    return chips[np.lexsort((col, row, col // _REGION_PX, row // _REGION_PX, col // _STRIP_PX))]
