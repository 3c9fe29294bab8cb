"""Make a scene to try hpcdl on: a four-band image and a land-cover raster on another grid, as a researcher would download them.

    python scripts/make_scene.py demo/scene

The land is invented (fractal terrain; water in the hollows, forest by height and moisture, fields and a town on the plain), the
formats are real: uint16 digital numbers in UTM with a nodata corner, NLCD codes in Albers at 30 m.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import Resampling, calculate_default_transform, reproject

Field = npt.NDArray[np.float64]

SIZE_PX = 640
PIXEL_M = 30.0
UTM, ALBERS = "EPSG:32612", "EPSG:5070"
NODATA = 65535

# Mean digital numbers of blue, green, red, near infrared, and how much they scatter.
SPECTRA = {
    11: ([7600, 7000, 6400, 5800], 90),
    22: ([9800, 9900, 10100, 12400], 900),
    31: ([10400, 11200, 12400, 13600], 500),
    41: ([8000, 8300, 7700, 16500], 420),
    42: ([7700, 7600, 7300, 13000], 420),
    52: ([8900, 9200, 9600, 13200], 450),
    71: ([9300, 9900, 10300, 14900], 400),
    82: ([8500, 9300, 8900, 18500], 650),
}


def fractal(generator: np.random.Generator, size: int, roughness: float) -> Field:
    """Noise with a power spectrum of 1/f^roughness, mean 0 and standard deviation 1."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij"))
    frequency[0, 0] = 1.0
    white = np.fft.rfft2(generator.normal(size=(size, size)))
    field = np.fft.irfft2(white / frequency ** (roughness / 2), s=(size, size))
    return (field - field.mean()) / field.std()


def land_cover(generator: np.random.Generator, size: int) -> npt.NDArray[np.uint8]:
    """NLCD codes of an invented landscape, size × size."""
    height, moisture = fractal(generator, size, 3.6), fractal(generator, size, 3.2)
    code = np.full((size, size), 52, dtype=np.uint8)
    code[(moisture > 0.2) & (height > -0.6)] = 71
    code[(moisture > 0.5) & (height > 0.0)] = 41
    code[(moisture > -0.3) & (height > 0.7)] = 42
    code[(height > 1.6) | ((height > 0.9) & (moisture < -0.8))] = 31
    rows, columns = np.mgrid[:size, :size]
    plain = (height < -0.2) & (moisture > -0.6)
    parcel = (rows // 24 * 7919 + columns // 32 * 104729) % 11
    code[plain & (parcel < 4)] = 82
    town = np.hypot(rows - 0.55 * size, columns - 0.4 * size) + 14 * fractal(generator, size, 2.5) < 0.09 * size
    code[town] = 22
    code[height < -1.35] = 11
    return code


def radiance(generator: np.random.Generator, code: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Digital numbers 4 × rows × columns: the class's spectrum, its texture, shading and sensor noise."""
    size = code.shape[0]
    shading, texture = 0.06 * fractal(generator, size, 3.0), fractal(generator, size, 1.2)
    image = np.zeros((4, size, size))
    for number, (spectrum, scatter) in SPECTRA.items():
        inside = code == number
        for band, mean in enumerate(spectrum):
            image[band][inside] = mean + scatter * texture[inside]
    image *= 1 + shading
    image += generator.normal(0, 220, image.shape)
    return np.clip(image, 1, NODATA - 1).astype(np.uint16)


def main(folder: Path) -> None:
    """Write image.tif and nlcd.tif into the folder."""
    generator = np.random.default_rng(2011)
    folder.mkdir(parents=True, exist_ok=True)
    code = land_cover(generator, SIZE_PX)
    image = radiance(generator, code)
    corner = np.add.outer(np.arange(SIZE_PX), np.arange(SIZE_PX)) < SIZE_PX // 6
    image[:, corner] = NODATA
    west_north = from_origin(320_000, 4_140_000, PIXEL_M, PIXEL_M)
    common = {"driver": "GTiff", "height": SIZE_PX, "width": SIZE_PX, "compress": "deflate", "tiled": True}
    bands = {"count": 4, "dtype": "uint16", "nodata": NODATA, "predictor": 2}
    with rasterio.open(folder / "image.tif", "w", crs=UTM, transform=west_north, **common, **bands) as out:
        out.write(image)
        for band, name in enumerate(("blue", "green", "red", "nir"), start=1):
            out.set_band_description(band, name)
    bounds = rasterio.transform.array_bounds(SIZE_PX, SIZE_PX, west_north)
    transform, width, height = calculate_default_transform(UTM, ALBERS, SIZE_PX, SIZE_PX, *bounds, resolution=PIXEL_M)
    labels = np.zeros((height, width), dtype=np.uint8)
    reproject(
        code, labels, src_transform=west_north, src_crs=UTM, dst_transform=transform, dst_crs=ALBERS,
        src_nodata=0, dst_nodata=0, resampling=Resampling.nearest,
    )  # fmt: skip
    profile = {**common, "height": height, "width": width, "count": 1, "dtype": "uint8", "nodata": 0}
    with rasterio.open(folder / "nlcd.tif", "w", crs=ALBERS, transform=transform, **profile) as out:
        out.write(labels, 1)
    print(f"{folder}/image.tif\n{folder}/nlcd.tif")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
