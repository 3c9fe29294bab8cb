"""Large made-up scenes: tiled, compressed GeoTIFFs in UTM and labels in NLCD's own projection, written strip by strip."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine
from rasterio.warp import transform
from rasterio.windows import Window

from tests.generators import ALBERS, CODES, IMAGE_CORNER, SIGNATURES, UTM, image_affine

PIXEL_M = 30.0
_TILE_PX = 512
# Squares of one class, as fields are: a code for each.
_FIELD_M = 960.0


def write_scene(folder: Path, size_px: int, compress: str = "deflate", bands: int = 4) -> tuple[Path, Path]:
    """An image of size_px × size_px × `bands` uint16 and the labels that cover it; kept when they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    image, labels = folder / f"image-{size_px}-{compress}.tif", folder / f"labels-{size_px}.tif"
    affine = image_affine(PIXEL_M)
    if not image.exists():
        _write(image, affine, UTM, size_px, size_px, bands, compress)
    if not labels.exists():
        side = size_px * PIXEL_M
        left, top = IMAGE_CORNER
        edge = np.linspace(0, side, 50)
        xs = np.concatenate([left + edge, left + edge, np.full(50, left), np.full(50, left + side)])
        ys = np.concatenate([np.full(50, top), np.full(50, top - side), top - edge, top - edge])
        east, north = transform(UTM, ALBERS, xs, ys)
        # NLCD's corners lie on multiples of 30 m plus 15.
        x0, y1 = math.floor(min(east) / 30) * 30 + 15.0 - 300, math.ceil(max(north) / 30) * 30 - 15.0 + 300
        width, height = int((max(east) - x0) / 30) + 10, int((y1 - min(north)) / 30) + 10
        _write(labels, Affine(30, 0, x0, 0, -30, y1), ALBERS, height, width, 0, "deflate")
    return image, labels


def _write(path: Path, affine: Affine, crs: str, height: int, width: int, bands: int, compress: str) -> None:
    """An image of that many bands, or labels (0 bands), in strips of one row of tiles."""
    profile = {
        "driver": "GTiff", "count": bands or 1, "height": height, "width": width, "crs": crs, "transform": affine,
        "dtype": "uint16" if bands else "uint8", "tiled": True, "blockxsize": _TILE_PX, "blockysize": _TILE_PX,
        "compress": compress, "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    if not bands:
        profile["nodata"] = 255
    random = np.random.default_rng(11)
    temporary = path.with_suffix(".part")
    with rasterio.open(temporary, "w", **profile) as dataset:
        for row in range(0, height, _TILE_PX):
            rows = min(_TILE_PX, height - row)
            field = _fields(affine, row, rows, width)
            window = Window(0, row, width, rows)
            if not bands:
                dataset.write(np.array(CODES, np.uint8)[field], 1, window=window)
                continue
            for band in range(bands):
                means = np.array([SIGNATURES[code][band % 4] for code in CODES], np.int32) * 4
                noise = random.integers(0, 256, (rows, width), np.int32)
                dataset.write((means[field] + noise).astype(np.uint16), band + 1, window=window)
    temporary.rename(path)


def _fields(affine: Affine, row: int, rows: int, width: int) -> np.ndarray:
    x = affine.c + (np.arange(width) + 0.5) * affine.a
    y = affine.f + (np.arange(row, row + rows) + 0.5) * affine.e
    east, south = np.floor(x / _FIELD_M).astype(np.int64), np.floor(-y / _FIELD_M).astype(np.int64)
    return (east[None] * 3 + south[:, None] * 5 + (east[None] // 3) * (south[:, None] // 2)) % len(CODES)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("size_px", type=int, nargs="+")
    parser.add_argument("--compress", default="deflate")
    options = parser.parse_args()
    for size in options.size_px:
        print(*write_scene(options.folder, size, options.compress))
