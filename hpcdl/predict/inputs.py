"""The user's files for one prediction, opened and checked against the run before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpcdl.errors import UsageError
from hpcdl.predict.network import TrainedRun
from hpcdl.predict.settings import Settings
from hpcdl.raster.grid import Grid
from hpcdl.raster.labels import Labels, open_labels
from hpcdl.raster.scene import SceneOptions, Scenes, open_scenes

Rect = tuple[int, int, int, int]


@dataclass(frozen=True)
class Inputs:
    """What is read, and the pixels it is read on.

    Attributes:
        target: the map's grid.
        regions: the scored region as half-open rectangles (row0, col0, row1, col1) of the target; None for all pixels.
        warnings: what the user should know before trusting the map.
    """

    scenes: Scenes
    labels: Labels | None
    target: Grid
    regions: tuple[Rect, ...] | None
    warnings: tuple[str, ...] = ()

    def in_region(self, row: int, height: int) -> npt.NDArray[np.bool_]:
        """Which pixels of some rows of the target are scored, height × width of the target."""
        if self.regions is None:
            return np.ones((height, self.target.width), np.bool_)
        inside_HW = np.zeros((height, self.target.width), np.bool_)
        for row0, col0, row1, col1 in self.regions:
            inside_HW[max(row0 - row, 0) : max(row1 - row, 0), max(col0, 0) : max(col1, 0)] = True
        return inside_HW


def open_inputs(settings: Settings, trained: TrainedRun) -> Inputs:
    """Open the images and labels and choose the map's grid.

    Raises:
        UsageError: an unusable file or option, another number of bands than the run has, labels beside the images, or a region that
            the run does not know or that cannot be found on this grid.
    """
    scenes = open_scenes(settings.images, _scene_options(settings, trained))
    warnings = _check_bands(scenes, trained)
    labels = None if settings.labels is None else open_labels(settings.labels, settings.label_crs)
    target = _target(settings, scenes, labels, trained)
    if settings.region == "all":
        return Inputs(scenes, labels, target, None, warnings)
    if labels is None:
        raise UsageError(
            f"region {settings.region!r} says which pixels to score, but there are no labels; give --labels"
        )
    return Inputs(scenes, labels, target, _regions(settings.region, target, trained), warnings)


def _scene_options(settings: Settings, trained: TrainedRun) -> SceneOptions:
    """How scenes are put together: scaled as the run's data set was, unless the user says otherwise."""
    own = tuple(trained.manifest.entries.get("settings", {}).get("scale", ()))
    if not settings.scale and len(set(own)) > 1:
        raise UsageError(
            f"the scenes of run {trained.run.name}'s data set had scales of their own ({' '.join(own)}); give these images "
            "theirs with --scale"
        )
    return SceneOptions(
        scene_by=settings.scene_by,
        mosaic=settings.mosaic,
        scale=settings.scale or own[:1],
        quality=settings.quality,
        quality_legend=settings.quality_legend,
        mask=settings.mask,
        crs=settings.image_crs,
    )


def _check_bands(scenes: Scenes, trained: TrainedRun) -> tuple[str, ...]:
    """Warnings; raises UsageError for another number of bands."""
    if scenes.num_bands != trained.num_bands:
        names = ", ".join(trained.manifest.entries.get("bands", ())) or "names unknown"
        raise UsageError(
            f"the images have {scenes.num_bands} band(s) ({', '.join(scenes.band_names)}), but run {trained.run.name} was "
            f"trained on {trained.num_bands} ({names}); give the same bands in the same order"
        )
    trained_on = trained.manifest.fields["image"]["dtype"]
    if scenes.dtype == trained_on:
        return ()
    return (
        f"the images hold {scenes.dtype}, run {trained.run.name} was trained on {trained_on}; the map is right only if "
        "their numbers mean the same",
    )


def _target(settings: Settings, scenes: Scenes, labels: Labels | None, trained: TrainedRun) -> Grid:
    own = trained.manifest.entries.get("grid")
    if settings.grid == "auto" and labels is not None:
        part = labels.grid.cropped(scenes.bounds_in(labels.grid.crs))
        if part is None:
            raise _no_overlap(labels, scenes, labels.grid)
        return part
    if settings.grid == "auto" and own is not None:
        lattice = Grid.from_json(own)
        return lattice.covering(scenes.bounds_in(lattice.crs))
    # A data set without a grid (chips from elsewhere) says nothing about pixels: the image's own are then the best.
    target = scenes.grid
    if labels is not None and target.cropped(labels.grid.bounds_in(target.crs)) is None:
        raise _no_overlap(labels, scenes, target)
    return target


def _no_overlap(labels: Labels, scenes: Scenes, grid: Grid) -> UsageError:
    def box(bounds: tuple[float, float, float, float]) -> str:
        return "(" + ", ".join(f"{number:.10g}" for number in bounds) + ")"

    return UsageError(
        f"{labels.path}: the labels do not overlap the images; in {grid.name} the labels cover "
        f"{box(labels.grid.bounds_in(grid.crs))} and the images {box(scenes.bounds_in(grid.crs))} (min x, min y, max x, "
        "max y); check that the files belong together"
    )


def _regions(name: str, target: Grid, trained: TrainedRun) -> tuple[Rect, ...]:
    entries = trained.manifest.entries
    known = entries.get("regions") or {}
    if name not in known or "grid" not in entries:
        have = ", ".join(known) if "grid" in entries and known else "none"
        raise UsageError(
            f"region {name!r}: the data set of run {trained.run.name} has regions: {have}; or use region 'all'"
        )
    lattice = Grid.from_json(entries["grid"])
    offset = target.offset_in(lattice)
    if offset is None:
        raise UsageError(
            f"region {name!r} is known in pixels of the run's data set ({lattice.name}, pixel size "
            f"{abs(lattice.transform[0]):.6g}), but the map has other pixels ({target.name}, "
            f"{abs(target.transform[0]):.6g}); use the labels that the data set was made with and --grid auto, or region 'all'"
        )
    row, col = offset
    rects = tuple((r0 - row, c0 - col, r1 - row, c1 - col) for r0, c0, r1, c1 in known[name])
    if not any(r1 > 0 and c1 > 0 and r0 < target.height and c0 < target.width for r0, c0, r1, c1 in rects):
        raise UsageError(
            f"region {name!r}: lies outside the images; give the scene that run {trained.run.name} was trained on"
        )
    return rects
