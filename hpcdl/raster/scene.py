"""Scenes: source images, each a stack of files on one grid, read together on a target grid.

Files on one grid are the bands of one scene, in the order given. Files on another grid are a further scene, which fills
in where those before it have no data. So all scenes must have the same bands; bands of unequal resolution (such as
Sentinel-2's 10 m and 20 m) have to be brought onto one grid before.
"""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcdl.errors import UsageError
from hpcdl.raster.grid import Bounds, Grid
from hpcdl.raster.source import Array, Mask, RasterSource


@dataclass(frozen=True)
class Scene:
    """One stack of files on one grid."""

    grid: Grid
    sources: tuple[RasterSource, ...]

    @property
    def num_bands(self) -> int:
        """Bands of all files together."""
        return sum(source.num_bands for source in self.sources)

    def read(self, grid: Grid, row: int, col: int, height: int, width: int, resampling: str) -> tuple[Array, Mask]:
        """(pixels C × H × W, mask H × W of the pixels with data in all bands) of a window of `grid`."""
        parts = [source.read(grid, row, col, height, width, resampling) for source in self.sources]
        return np.concatenate([pixels for pixels, _ in parts]), np.logical_and.reduce([valid for _, valid in parts])


class Scenes:
    """One or more scenes with the same bands. Picklable; files are opened at the first read of a process.

    Attributes:
        scenes: in the order given; the first that has data wins.
        num_bands, dtype: the same for all scenes; dtype is numpy's name.
        band_names: of the first scene.
        fill: what pixels without data hold in all bands: 0 for integers, NaN for floats.
    """

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.scenes = tuple(scenes)
        first = self.scenes[0]
        self.num_bands = first.num_bands
        self.dtype = first.sources[0].dtype
        self.band_names = tuple(name for source in first.sources for name in source.band_names)
        self.fill: float = math.nan if np.dtype(self.dtype).kind == "f" else 0
        self._boxes: dict[Grid, list[tuple[float, float, float, float]]] = {}

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files, scene by scene."""
        return tuple(source.path for scene in self.scenes for source in scene.sources)

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
        image_CHW = np.full((self.num_bands, height, width), self.fill, self.dtype)
        valid_HW = np.zeros((height, width), np.bool_)
        for scene, (row0, col0, row1, col1) in zip(self.scenes, self._scene_boxes(grid), strict=True):
            if row >= row1 or col >= col1 or row + height <= row0 or col + width <= col0:
                continue
            pixels_CHW, has_data_HW = scene.read(grid, row, col, height, width, resampling)
            new_HW = has_data_HW & ~valid_HW
            image_CHW[:, new_HW] = pixels_CHW[:, new_HW]
            valid_HW |= new_HW
            if valid_HW.all():
                break
        return image_CHW, valid_HW

    def _scene_boxes(self, grid: Grid) -> list[tuple[float, float, float, float]]:
        """For each scene the box around it in pixels of `grid`, a little wider than it is."""
        if grid not in self._boxes:
            boxes = (grid.pixel_box(scene.grid.bounds_in(grid.crs)) for scene in self.scenes)
            self._boxes[grid] = [(row0 - 2, col0 - 2, row1 + 2, col1 + 2) for row0, col0, row1, col1 in boxes]
        return self._boxes[grid]


def open_scenes(patterns: Sequence[str], crs: str | None = None) -> Scenes:
    """The scenes of files and globs; a name that exists is that file, even when it holds *, ? or brackets.

    Args:
        patterns: file names and globs; a glob's hits come in natural order (b2 before b10).
        crs: coordinate system of the files that carry none.

    Raises:
        UsageError: a pattern without a hit, a file given twice, an unusable file, or scenes that differ in their number
            of bands or pixel type.
    """
    paths = [path for pattern in patterns for path in expand(pattern)]
    if not paths:
        raise UsageError("no image is given; name GeoTIFF files or globs, such as --images 'landsat_b*.tif'")
    sources: dict[Path, RasterSource] = {}
    for path in paths:
        source = RasterSource(path, crs)
        if source.path in sources:
            raise UsageError(f"{path}: the image is given twice; name each file once (globs may overlap)")
        sources[source.path] = source
    stacks: list[list[RasterSource]] = []
    for source in sources.values():
        for stack in stacks:
            if source.grid.same_as(stack[0].grid):
                stack.append(source)
                break
        else:
            stacks.append([source])
    scenes = [Scene(stack[0].grid, tuple(stack)) for stack in stacks]
    _check_alike(scenes)
    return Scenes(scenes)


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
