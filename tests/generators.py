"""Tiny inputs with known contents. All functions are deterministic and write below the folder they are given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.transform import Affine
from rasterio.warp import transform

UTM = "EPSG:32612"
ALBERS = "EPSG:5070"  # NLCD's own
IMAGE_CORNER = (300_000.0, 4_150_000.0)  # in southern Utah, so that UTM zone 12 and Albers both fit
CODES = (11, 42, 52, 81)
# Digital numbers of each code in the four bands: apart enough that a small network learns them in seconds.
SIGNATURES = {
    11: (500, 400, 300, 200),
    42: (700, 900, 800, 4000),
    52: (1500, 1700, 2200, 2600),
    81: (900, 1400, 1000, 6000),
}
NODATA = 65535


def write_raster(
    path: Path,
    bands_CHW: npt.NDArray[Any],
    affine: Affine,
    crs: str | None,
    nodata: float | None = None,
    mask_HW: npt.NDArray[np.bool_] | None = None,
    **profile: Any,
) -> Path:
    """A GeoTIFF; `mask_HW` (true = data) is stored as an internal mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands_CHW.shape
    settings = {
        "driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands_CHW.dtype, "crs": crs,
        "transform": affine, "nodata": nodata, **profile,
    }  # fmt: skip
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **settings) as dataset:
        dataset.write(bands_CHW)
        if mask_HW is not None:
            dataset.write_mask(mask_HW)
    return path


def image_affine(pixel_m: float = 30.0, corner: tuple[float, float] = IMAGE_CORNER) -> Affine:
    """North-up pixels from a corner in UTM."""
    return Affine(pixel_m, 0, corner[0], 0, -pixel_m, corner[1])


def centres(affine: Affine, height: int, width: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Map x and y of all pixel centres, each H × W."""
    cols, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return affine.a * cols + affine.b * rows + affine.c, affine.d * cols + affine.e * rows + affine.f


def codes_at(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """The made-up country's code at UTM coordinates: squares of 480 m in a pattern that does not repeat row by row."""
    east = np.floor((x - IMAGE_CORNER[0]) / 480).astype(int)
    south = np.floor((IMAGE_CORNER[1] - y) / 480).astype(int)
    return np.array(CODES, np.uint8)[(east * 3 + south * 5 + east * south) % len(CODES)]


@dataclass(frozen=True)
class LandcoverFiles:
    """Four one-band images and a label raster on another grid and in another CRS."""

    images: tuple[Path, ...]
    labels: Path

    @property
    def glob(self) -> str:
        """A glob that finds the images."""
        return str(self.images[0].parent / "band_b*.tif")


def landcover_files(folder: Path, height: int = 150, width: int = 180, nodata_px: int = 20) -> LandcoverFiles:
    """A scene of 30 m pixels in UTM, and its NLCD codes in Albers, 31 m, turned against it by some degrees.

    The image's north-west corner (a square of `nodata_px`) is nodata. Labels reach over the image on all sides.
    """
    affine = image_affine()
    codes_HW = codes_at(*centres(affine, height, width))
    random = np.random.default_rng(7)
    images = []
    for number in range(4):
        means = np.zeros(256)
        for code, signature in SIGNATURES.items():
            means[code] = signature[number]
        band_HW = (means[codes_HW] + random.normal(0, 40, (height, width))).clip(1, 60000).astype(np.uint16)
        band_HW[:nodata_px, :nodata_px] = NODATA
        images.append(write_raster(folder / f"band_b{number + 2}.tif", band_HW[None], affine, UTM, NODATA))
    return LandcoverFiles(tuple(images), labels_file(folder / "nlcd.tif", height, width))


def labels_file(path: Path, height: int, width: int, pixel_m: float = 31.0) -> Path:
    """Codes on an Albers grid that covers an image of that size, with 255 as nodata."""
    (left, top), right, bottom = IMAGE_CORNER, IMAGE_CORNER[0] + 30 * width, IMAGE_CORNER[1] - 30 * height
    xs, ys = transform(UTM, ALBERS, [left, right, left, right], [top, top, bottom, bottom])
    affine = Affine(pixel_m, 0, min(xs) - 100, 0, -pixel_m, max(ys) + 100)
    size_row, size_col = (max(ys) - min(ys) + 200) // pixel_m, (max(xs) - min(xs) + 200) // pixel_m
    x, y = centres(affine, int(size_row), int(size_col))
    utm_x, utm_y = transform(ALBERS, UTM, x.ravel(), y.ravel())
    codes_HW = codes_at(np.reshape(utm_x, x.shape), np.reshape(utm_y, x.shape))
    return write_raster(path, codes_HW[None], affine, ALBERS, nodata=255)


def coordinate_image(path: Path, height: int = 120, width: int = 140, dtype: str = "float64") -> Path:
    """Two bands that hold the UTM x and y of each pixel's centre, less the corner's, in metres."""
    affine = image_affine()
    x, y = centres(affine, height, width)
    bands_CHW = np.stack([x - IMAGE_CORNER[0], IMAGE_CORNER[1] - y]).astype(dtype)
    return write_raster(path, bands_CHW, affine, UTM)


def truncate(path: Path, keep: float) -> Path:
    """Cut a file short, as a broken download does."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def damage_tile(path: Path, row: int, col: int) -> Path:
    """Rewrite a one-band file in compressed tiles of 64 pixels and spoil the tile in that row and column of tiles."""
    with rasterio.open(path) as dataset:
        values, affine, crs, nodata = dataset.read(), dataset.transform, dataset.crs, dataset.nodata
    write_raster(path, values, affine, crs, nodata, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    with rasterio.open(path) as dataset:
        offset = int(dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"spoilt" * 20)
    return path
