"""Scenes: source images, each a stack of files on one grid, read together on a target grid.

Files on one grid (or, if asked for, in one folder) are the bands of one scene, in the order given; all scenes need the same
bands. Bands of unequal resolution (such as Sentinel-2's 10 m and 20 m) have to be brought onto one grid before. Where
scenes overlap, the first or last one with data counts, or the median of all that have.
"""

from __future__ import annotations

import dataclasses
import glob
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcdl.errors import UsageError
from hpcdl.raster.grid import Bounds, Grid
from hpcdl.raster.quality import load_quality_rule
from hpcdl.raster.scale import Scale, parse_scale
from hpcdl.raster.source import Array, Mask, RasterSource

MOSAICS = ("first", "last", "median")


# Values that a median works on at once: 64 MB as float64.
_MEDIAN_VALUES = 8_000_000


@dataclass(frozen=True)
class SceneOptions:
    """How files become scenes, and scenes one image.

    Attributes:
        scene_by: files on one "grid", or in one "folder", are the bands of one scene.
        mosaic: of scenes that overlap, the "first" or "last" with data counts, or the "median" of all that have.
        scale: gain and offset, for all scenes or one for each: see scale.parse_scale.
        quality: files or globs of quality bands, one for each scene.
        quality_legend: what their codes mean: a name in configs/quality, or a YAML file.
        mask: flags of the legend that leave a pixel out; the legend's own choice when empty.
        crs: coordinate system of the files that carry none.
    """

    scene_by: str = "grid"
    mosaic: str = "first"
    scale: tuple[str, ...] = ()
    quality: tuple[str, ...] = ()
    quality_legend: str = "landsat-c2"
    mask: tuple[str, ...] = ()
    crs: str | None = None


@dataclass(frozen=True)
class Scene:
    """One stack of files on one grid; `scale` is None when their numbers are taken as they are."""

    grid: Grid
    sources: tuple[RasterSource, ...]
    scale: Scale | None = None

    @property
    def num_bands(self) -> int:
        """Bands of all files together."""
        return sum(source.num_bands for source in self.sources)

    def read(self, grid: Grid, row: int, col: int, height: int, width: int, resampling: str) -> tuple[Array, Mask]:
        """(pixels C × H × W, mask H × W of the pixels with data in all bands) of a window of `grid`."""
        parts = [source.read(grid, row, col, height, width, resampling) for source in self.sources]
        if len(parts) == 1:
            pixels_CHW, valid_HW = parts[0]
        else:
            pixels_CHW = np.concatenate([pixels for pixels, _ in parts])
            valid_HW = np.logical_and.reduce([valid for _, valid in parts])
        return pixels_CHW if self.scale is None else self.scale.apply(pixels_CHW), valid_HW


class Scenes:
    """One or more scenes with the same bands. Picklable; files are opened at the first read of a process.

    Attributes:
        scenes: in the order in which they are asked for data.
        num_bands, dtype: the same for all scenes; dtype is numpy's name.
        band_names: of the first scene.
        fill: what pixels without data hold in all bands: 0 for integers, NaN for floats.
    """

    def __init__(self, scenes: Sequence[Scene], mosaic: str = "first") -> None:
        self.scenes = tuple(scenes)
        self._mosaic = mosaic
        first = self.scenes[0]
        self.num_bands = first.num_bands
        self.dtype = first.sources[0].dtype if first.scale is None else "float32"
        self.band_names = tuple(name for source in first.sources for name in source.band_names)
        self.fill: float = math.nan if np.dtype(self.dtype).kind == "f" else 0
        self._boxes: dict[Grid, list[tuple[float, float, float, float]]] = {}

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files, scene by scene."""
        return tuple(source.path for scene in self.scenes for source in scene.sources)

    @property
    def quality_paths(self) -> tuple[Path, ...]:
        """The quality bands' files, scene by scene."""
        return tuple(path for scene in self.scenes if (path := scene.sources[0].quality_path) is not None)

    def to_json(self) -> list[Any]:
        """Of each scene what decides its pixels besides its files' contents: how many they are, their scale and masks."""
        return [
            [
                len(scene.sources),
                scene.scale and [scene.scale.gains, scene.scale.offsets],
                scene.sources[0].quality_rule and [dataclasses.astuple(f) for f in scene.sources[0].quality_rule.flags],
            ]
            for scene in self.scenes
        ]

    @property
    def grid(self) -> Grid:
        """The first scene's grid, extended on its own pixels to cover all scenes."""
        first = self.scenes[0].grid
        if len(self.scenes) == 1:
            return first
        return first.covering(self.bounds_in(first.crs))

    def bounds_in(self, crs: str) -> Bounds:
        """The box around all scenes in a coordinate system: (min x, min y, max x, max y)."""
        lefts, bottoms, rights, tops = zip(*(scene.grid.bounds_in(crs) for scene in self.scenes), strict=True)
        return min(lefts), min(bottoms), max(rights), max(tops)

    def read(
        self, grid: Grid, row: int, col: int, height: int, width: int, resampling: str = "bilinear"
    ) -> tuple[Array, Mask]:
        """A window of a target grid, warped onto it from the first scene that has data.

        A pixel's value depends on the target grid only, never on the window: tiles equal one read of the whole. Pixels
        without data are not mixed into their neighbours.

        Args:
            grid: the whole target grid.
            row, col: top-left pixel of the window; the window must lie within the grid.
            height, width: size of the window in pixels.
            resampling: nearest, bilinear, cubic, cubicspline, lanczos, average or mode.

        Returns:
            Pixels, C × H × W in the source's dtype, and a mask, H × W, that is true where all bands have data (not
            nodata, not masked, not NaN, not outside the image). Elsewhere all bands hold `fill`.

        Raises:
            FailedError: a file is damaged in this window; names it.
        """
        here = [
            scene
            for scene, (row0, col0, row1, col1) in zip(self.scenes, self._scene_boxes(grid), strict=True)
            if row < row1 and col < col1 and row + height > row0 and col + width > col0
        ]
        if self._mosaic == "median" and len(here) > 1:
            return self._median(here, grid, (row, col, height, width), resampling)
        found: tuple[Array, Mask] | None = None
        for scene in reversed(here) if self._mosaic == "last" else here:
            pixels_CHW, has_data_HW = scene.read(grid, row, col, height, width, resampling)
            if found is None:
                found = pixels_CHW, has_data_HW
            else:
                new_HW = has_data_HW & ~found[1]
                np.copyto(found[0], pixels_CHW, where=new_HW)
                found[1][new_HW] = True
            if found[1].all():
                return found
        if found is None:
            return np.full((self.num_bands, height, width), self.fill, self.dtype), np.zeros((height, width), np.bool_)
        np.copyto(found[0], np.asarray(self.fill, self.dtype), where=~found[1])
        return found

    def _median(
        self, scenes: Sequence[Scene], grid: Grid, window: tuple[int, int, int, int], resampling: str
    ) -> tuple[Array, Mask]:
        """The median of the scenes that have data, band by band and pixel by pixel; of two it is their mean."""
        row, col, height, width = window
        image_CHW = np.full((self.num_bands, height, width), self.fill, self.dtype)
        valid_HW = np.zeros((height, width), np.bool_)
        # In strips, so that memory does not grow with the number of scenes.
        rows = max(1, _MEDIAN_VALUES // (width * self.num_bands * len(scenes)))
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            parts = [scene.read(grid, row + top, col, bottom - top, width, resampling) for scene in scenes]
            stack_SCHW = np.stack([np.where(valid, pixels, np.nan) for pixels, valid in parts])
            stack_SCHW.sort(axis=0)  # what has no data comes last
            number_HW = np.sum([valid for _, valid in parts], axis=0)
            low, high = np.maximum(number_HW - 1, 0) // 2, number_HW // 2
            has_data_HW = number_HW > 0
            middles = [
                np.take_along_axis(stack_SCHW, np.broadcast_to(place, (1, *stack_SCHW.shape[1:])), axis=0)[0]
                for place in (low, np.minimum(high, len(parts) - 1))
            ]
            middle_CHW = np.where(has_data_HW, (middles[0] + middles[1]) / 2, 0)
            if image_CHW.dtype.kind in "iu":
                middle_CHW = np.rint(middle_CHW)
            np.copyto(image_CHW[:, top:bottom], middle_CHW.astype(self.dtype), where=has_data_HW)
            valid_HW[top:bottom] = has_data_HW
        return image_CHW, valid_HW

    def _scene_boxes(self, grid: Grid) -> list[tuple[float, float, float, float]]:
        """For each scene the box around it in pixels of `grid`, a little wider than it is."""
        if grid not in self._boxes:
            self._boxes[grid] = [_box_on(grid, scene.grid.bounds_in(grid.crs)) for scene in self.scenes]
        return self._boxes[grid]


def _box_on(grid: Grid, bounds: Bounds) -> tuple[float, float, float, float]:
    if bounds[0] > bounds[2]:  # across the antimeridian its west lies east of its east: it may be anywhere
        return -math.inf, -math.inf, math.inf, math.inf
    row0, col0, row1, col1 = grid.pixel_box(bounds)
    return row0 - 2, col0 - 2, row1 + 2, col1 + 2


def open_scenes(patterns: Sequence[str], options: SceneOptions | None = None) -> Scenes:
    """The scenes of files and globs; a name that exists is that file, even when it holds *, ? or brackets.

    Args:
        patterns: file names and globs; a glob's hits come in natural order (b2 before b10).
        options: how to put them together.

    Raises:
        UsageError: a pattern without a hit, a file given twice, an unusable file or option, scenes that differ in their
            number of bands or pixel type, or quality bands that do not fit the scenes.
    """
    options = options or SceneOptions()
    stacks = _stacks(_open_all(patterns, options.crs, "image"), options.scene_by)
    if not stacks:
        raise UsageError("no image is given; name GeoTIFF files or globs, such as --images 'landsat_b*.tif'")
    if len(options.scale) not in (0, 1, len(stacks)):
        raise UsageError(
            f"--scale is given {len(options.scale)} times for {len(stacks)} scenes; give it once for all of them, or once "
            "for each in their order"
        )
    texts = options.scale * len(stacks) if len(options.scale) == 1 else options.scale or (None,) * len(stacks)
    scenes = [
        Scene(stack[0].grid, tuple(stack), None if text is None else parse_scale(text, stack))
        for stack, text in zip(stacks, texts, strict=True)
    ]
    _check_alike(scenes)
    if options.quality:
        _attach_quality(scenes, options)
    elif options.mask:
        raise UsageError("--mask names flags of quality bands, but none are given; name their files with --quality")
    return Scenes(scenes, options.mosaic)


def _open_all(patterns: Sequence[str], crs: str | None, what: str) -> list[RasterSource]:
    sources: dict[Path, RasterSource] = {}
    for path in (path for pattern in patterns for path in expand(pattern)):
        source = RasterSource(path, crs)
        if source.path in sources:
            raise UsageError(f"{path}: the {what} is given twice; name each file once (globs may overlap)")
        sources[source.path] = source
    return list(sources.values())


def _stacks(sources: Sequence[RasterSource], scene_by: str) -> list[list[RasterSource]]:
    """Files scene by scene, in the order in which their scenes are first met."""
    stacks: list[list[RasterSource]] = []
    for source in sources:
        for stack in stacks:
            first = stack[0]
            if source.path.parent == first.path.parent if scene_by == "folder" else source.grid.same_as(first.grid):
                if not source.grid.same_as(first.grid):
                    raise UsageError(
                        f"{source.path}: lies on another grid than {first.path} in the same folder; the files of a scene "
                        "share CRS, corner, pixel size and shape (gdalwarp brings them onto one grid)"
                    )
                stack.append(source)
                break
        else:
            stacks.append([source])
    return stacks


def _attach_quality(scenes: Sequence[Scene], options: SceneOptions) -> None:
    """Give each scene the quality band of its folder or grid."""
    rule = load_quality_rule(options.quality_legend, options.mask)
    for band in _open_all(options.quality, options.crs, "quality band"):
        if band.num_bands != 1 or np.dtype(band.dtype).kind == "f":
            raise UsageError(
                f"{band.path}: has {band.num_bands} band(s) of {band.dtype}; a quality band is one of integers"
            )
        owners = [
            scene
            for scene in scenes
            if band.grid.same_as(scene.grid)
            and (options.scene_by != "folder" or band.path.parent == scene.sources[0].path.parent)
        ]
        if len(owners) != 1 or owners[0].sources[0].quality_rule:
            reason = "has its grid" if options.scene_by == "grid" else "lies in its folder on its grid"
            raise UsageError(
                f"{band.path}: no scene without a quality band {reason}; each scene takes one (see --scene-by)"
            )
        for source in owners[0].sources:
            source.leave_out(band, rule)
    for scene in scenes:
        if scene.sources[0].quality_rule is None:
            raise UsageError(
                f"{scene.sources[0].path}: its scene has no quality band among --quality; give one for each"
            )


def expand(pattern: str) -> list[Path]:
    """The files of one name or glob.

    Raises:
        UsageError: nothing is there.
    """
    if os.path.lexists(pattern):
        return [Path(pattern)]
    # Path.glob takes no absolute pattern.
    hits = sorted(glob.glob(pattern, recursive=True), key=natural_key)  # noqa: PTH207
    if not hits:
        what = "no file matches" if glob.has_magic(pattern) else "no such file"
        raise UsageError(f"{pattern}: {what} (searched from {Path.cwd()})")
    return [Path(hit) for hit in hits if not Path(hit).is_dir()]


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key that puts b2 before b10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _check_alike(scenes: Sequence[Scene]) -> None:
    first = scenes[0]
    for source in (source for scene in scenes for source in scene.sources):
        other = first.sources[0]
        if source.dtype != other.dtype:
            raise UsageError(
                f"{source.path}: pixel type {source.dtype}, but {other.path} has {other.dtype}; "
                "all images need one pixel type (gdal_translate -ot converts)"
            )
    for scene in scenes[1:]:
        if scene.num_bands != first.num_bands:
            raise UsageError(
                f"{scene.sources[0].path}: its scene has {_bands(scene)}, but that of {first.sources[0].path} has "
                f"{_bands(first)}; files on one grid (CRS, corner, pixel size, shape) are the bands of one scene, "
                "and all scenes need the same bands"
            )


def _bands(scene: Scene) -> str:
    return f"{scene.num_bands} band{'s' if scene.num_bands != 1 else ''} in {len(scene.sources)} file(s)"
