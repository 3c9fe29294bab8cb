"""A scene, its labels and its map thinned out to a screen's size, as colours; memory depends on that size only."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.windows import Window

from hpcdl.predict.blend import NO_CLASS
from hpcdl.predict.geotiff import TILE_PX, ClassCodes
from hpcdl.predict.inputs import Inputs
from hpcdl.raster.grid import Grid
from hpcdl.raster.legend import ClassMap

Colors = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.uint8]

NO_DATA_COLOR = (236, 236, 233)


def thinning(grid: Grid, longest_px: int) -> int:
    """Take every n-th pixel to have the longer side no longer than that."""
    return max(1, math.ceil(max(grid.height, grid.width) / longest_px))


def shown_bands(names: Sequence[str]) -> tuple[int, ...]:
    """Indices of the bands to show as red, green and blue, or of one to show in grey.

    By name (…red, …green, …blue; …b4, …b3, …b2, as Landsat 8 and Sentinel-2 number them); else the first three in
    reverse, as most files have blue first; of two bands or one, the first.
    """
    for endings in (("red", "green", "blue"), ("b0?4", "b0?3", "b0?2")):
        found = [
            [place for place, name in enumerate(names) if re.search(f"(^|[^a-z0-9]){ending}$", name.lower())]
            for ending in endings
        ]
        if all(len(places) == 1 for places in found):
            return tuple(places[0] for places in found)
    return (2, 1, 0) if len(names) >= 3 else (0,)


def view_image(inputs: Inputs, bands: Sequence[int], resampling: str, step: int) -> Colors:
    """The image, H × W × 3: each band stretched from the 2nd to the 98th percentile of its pixels with data."""
    coarse = _thinned(inputs.target, step)
    picture_HWC = np.zeros((coarse.height, coarse.width, len(bands)), np.float32)
    valid_HW = np.zeros((coarse.height, coarse.width), np.bool_)
    for row in range(0, coarse.height, TILE_PX):
        rows = min(TILE_PX, coarse.height - row)
        pixels_CHW, valid_HW[row : row + rows] = inputs.scenes.read(coarse, row, 0, rows, coarse.width, resampling)
        picture_HWC[row : row + rows] = np.moveaxis(pixels_CHW[list(bands)], 0, -1)
    if valid_HW.any():
        low, high = np.percentile(picture_HWC[valid_HW], (2, 98), axis=0)
        # Bright rock, snow and clouds push everything else into the dark; the exponent lifts it a little.
        picture_HWC = ((picture_HWC - low) / np.maximum(high - low, 1e-9)).clip(0, 1) ** 0.8
    colors_HWC = np.broadcast_to(np.rint(np.where(valid_HW[..., None], picture_HWC, 0) * 255), (*valid_HW.shape, 3))
    return np.where(valid_HW[..., None], colors_HWC, np.array(NO_DATA_COLOR)).astype(np.uint8)


def view_map(map_file: Path, inputs: Inputs, classes: Sequence[Mapping[str, Any]], step: int) -> Indices:
    """Dense indices of every `step`-th pixel of a map, NO_CLASS where it has no data."""
    codes, width = ClassCodes(classes), inputs.target.width
    with rasterio.open(map_file) as dataset:
        return _thin(
            inputs.target.height,
            step,
            lambda row, rows: codes.decode(dataset.read(1, window=Window(0, row, width, rows))),
        )


def view_labels(inputs: Inputs, classes: Sequence[Mapping[str, Any]], step: int) -> Indices:
    """Dense indices of every `step`-th pixel of the labels, NO_CLASS where they have none of the run's classes."""
    labels, class_map, width = inputs.labels, ClassMap.from_json(classes), inputs.target.width
    assert labels is not None
    return _thin(
        inputs.target.height,
        step,
        lambda row, rows: class_map.indices(labels.read_on(inputs.target, row, 0, rows, width)),
    )


def colored(indices_HW: Indices, classes: Sequence[Mapping[str, Any]]) -> Colors:
    """The classes' colours, H × W × 3."""
    table = np.full((NO_CLASS + 1, 3), NO_DATA_COLOR, np.uint8)
    table[: len(classes)] = [entry["color"] for entry in classes]
    return table[indices_HW]


def _thin(height: int, step: int, read: Any) -> Indices:
    parts = []
    for row in range(0, height, TILE_PX):
        indices_HW = read(row, min(TILE_PX, height - row))
        parts.append(indices_HW[-row % step :: step, ::step])
    return np.concatenate(parts)


def _thinned(grid: Grid, step: int) -> Grid:
    """Pixels `step` times as large, from the same corner on."""
    if step == 1:
        return grid
    a, b, c, d, e, f = grid.transform
    size = math.ceil(grid.height / step), math.ceil(grid.width / step)
    return Grid(grid.crs, (a * step, b * step, c, d * step, e * step, f), *size)
