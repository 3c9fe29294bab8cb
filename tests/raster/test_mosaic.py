"""Where scenes overlap: first, last and median against plain numpy, with gaps, in two UTM zones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rasterio.transform import Affine
from rasterio.warp import transform

from hpcdl.errors import UsageError
from hpcdl.raster import scene as scene_module
from hpcdl.raster.grid import Grid, parse_crs
from hpcdl.raster.scene import SceneOptions, open_scenes
from hpcdl.raster.source import RasterSource
from tests.generators import UTM, image_affine, write_raster

NODATA = {"uint8": 0, "uint16": 0, "int16": -9999, "float32": -9999.0, "float64": None}
# Between the zones: 114° west is the border of 11 and 12.
MIDDLE = (-114.0, 37.0)
ALBERS = "EPSG:5070"


def in_crs(crs: str) -> tuple[float, float]:
    (x,), (y,) = transform("EPSG:4326", crs, [MIDDLE[0]], [MIDDLE[1]])
    return x, y


def three_scenes(folder: Path, dtype: str) -> list[str]:
    """Two in zone 12, one in zone 11; they overlap in part, each with gaps of its own, all around 114° west."""
    random = np.random.default_rng(8)
    paths = []
    for number, (crs, east, south) in enumerate(
        (("EPSG:32612", -1900.0, -1500.0), ("EPSG:32611", -2400.0, -1100.0), ("EPSG:32612", -600.0, -2000.0))
    ):
        x, y = in_crs(crs)
        high = 250 if dtype == "uint8" else 9000
        values = random.integers(1, high, (2, 110, 120)).astype(dtype)
        gaps = random.random((110, 120)) < 0.15
        gaps[30 + 20 * number : 60 + 20 * number, 40:75] = True
        values[:, gaps] = np.nan if NODATA[dtype] is None else NODATA[dtype]
        # In one band only: the pixel counts as empty in both.
        values[1, 5:9, 5:9] = np.nan if NODATA[dtype] is None else NODATA[dtype]
        affine = Affine(30, 0, x + east, 0, -30, y - south)
        paths.append(str(write_raster(folder / f"s{number}.tif", values, affine, crs, NODATA[dtype])))
    return paths


def albers_grid(pixel_m: float = 31.0, count: int = 170) -> Grid:
    x, y = in_crs(ALBERS)
    half = count * pixel_m / 2
    return Grid(parse_crs(ALBERS).to_wkt(), (pixel_m, 0, x - half, 0, -pixel_m, y + half), count, count)


def reference(paths: list[str], grid: Grid, resampling: str, mosaic: str) -> tuple[np.ndarray, np.ndarray]:
    """Each scene read on its own, put together by numpy's own functions."""
    parts = [RasterSource(Path(path)).read(grid, 0, 0, grid.height, grid.width, resampling) for path in paths]
    dtype = parts[0][0].dtype
    stack = np.ma.stack(
        [np.ma.array(pixels, mask=np.broadcast_to(~valid, pixels.shape)) for pixels, valid in parts]
    ).astype(np.float64)
    if mosaic == "median":
        whole = np.ma.median(stack, axis=0)
    else:
        order = range(3) if mosaic == "first" else range(2, -1, -1)
        whole = stack[order[0]]
        for number in order[1:]:
            whole = np.ma.where(np.ma.getmaskarray(whole), stack[number], whole)
    fill = np.nan if dtype.kind == "f" else 0
    values = whole.filled(fill)
    return np.rint(values).astype(dtype) if dtype.kind != "f" else values.astype(dtype), ~np.ma.getmaskarray(whole)[0]


@pytest.mark.parametrize("dtype", list(NODATA))
@pytest.mark.parametrize("resampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("mosaic", ["first", "last", "median"])
def test_three_scenes_in_two_zones_are_what_numpy_makes_of_them(tmp_path, mosaic, resampling, dtype):
    paths, grid = three_scenes(tmp_path, dtype), albers_grid()
    scenes = open_scenes(paths, SceneOptions(mosaic=mosaic))
    assert len(scenes.scenes) == 3
    image, valid = scenes.read(grid, 0, 0, grid.height, grid.width, resampling)
    expected, held = reference(paths, grid, resampling, mosaic)
    np.testing.assert_array_equal(valid, held)
    assert 0.3 < valid.mean() < 0.95
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("resampling", ["bilinear", "cubic"])
@pytest.mark.parametrize("mosaic", ["first", "last", "median"])
def test_any_window_has_the_pixels_of_one_whole_read(tmp_path, monkeypatch, mosaic, resampling):
    paths, grid = three_scenes(tmp_path, "uint16"), albers_grid()
    scenes = open_scenes(paths, SceneOptions(mosaic=mosaic))
    image, valid = scenes.read(grid, 0, 0, grid.height, grid.width, resampling)
    # As with scenes so large or many that the median works in strips.
    monkeypatch.setattr(scene_module, "_MEDIAN_VALUES", 3 * 2 * 170 * 7)
    random = np.random.default_rng(1)
    another = open_scenes(paths, SceneOptions(mosaic=mosaic))
    for row, col in random.integers(0, 150, (15, 2)).tolist():
        height, width = random.integers(1, 20, 2).tolist()
        part, part_valid = another.read(grid, row, col, height, width, resampling)
        np.testing.assert_array_equal(part, image[:, row : row + height, col : col + width])
        np.testing.assert_array_equal(part_valid, valid[row : row + height, col : col + width])
    again, _ = scenes.read(grid, 0, 0, grid.height, grid.width, resampling)
    np.testing.assert_array_equal(again, image)


def stacked(folder: Path, values: list, dtype: str = "uint16", nodata: float | None = 0) -> list[str]:
    """One file a day, each in its own folder and on one grid, of one pixel each."""
    paths = []
    for number, value in enumerate(values):
        bands = np.full((1, 1, 1), value, dtype)
        paths.append(str(write_raster(folder / f"day{number}" / "b.tif", bands, image_affine(), UTM, nodata)))
    return paths


@pytest.mark.parametrize(
    ("values", "median"),
    [
        ([5], 5),
        ([0], 0),
        ([0, 0, 0], 0),
        ([0, 7, 0], 7),
        ([3, 9], 6),
        ([0, 3, 9, 0], 6),
        ([9, 1, 5], 5),
        ([9, 0, 1, 5], 5),
        ([1, 2, 3, 100], 2),  # 2.5: halves go to the even number
        ([3, 4], 4),
        ([65535, 65535], 65535),
        ([65535, 65534], 65534),
        ([1, 65535, 2], 2),
    ],
)
def test_medians_by_hand(tmp_path, values, median):
    scenes = open_scenes(stacked(tmp_path, values), SceneOptions(scene_by="folder", mosaic="median"))
    assert len(scenes.scenes) == len(values)
    image, valid = scenes.read(scenes.grid, 0, 0, 1, 1)
    assert image.dtype == np.uint16
    assert (image.item(), bool(valid.item())) == (median, any(values))


@pytest.mark.parametrize("dtype", ["uint32", "int32", "float64"])
def test_large_numbers_keep_their_last_digit(tmp_path, dtype):
    values = [2**31 - 1, 2**31 - 3, 2**31 - 5]
    scenes = open_scenes(stacked(tmp_path, values, dtype), SceneOptions(scene_by="folder", mosaic="median"))
    assert scenes.read(scenes.grid, 0, 0, 1, 1)[0].item() == 2**31 - 3


def test_the_order_of_scenes_changes_first_and_last_and_no_median(tmp_path):
    paths, grid = three_scenes(tmp_path, "float32"), albers_grid()

    def read(order: list[str], mosaic: str) -> np.ndarray:
        return open_scenes(order, SceneOptions(mosaic=mosaic)).read(grid, 0, 0, grid.height, grid.width)[0]

    np.testing.assert_array_equal(read(paths, "median"), read(paths[::-1], "median"))
    np.testing.assert_array_equal(read(paths, "first"), read(paths[::-1], "last"))
    assert not np.array_equal(read(paths, "first"), read(paths, "last"), equal_nan=True)


def test_by_folder_scenes_on_one_grid_stay_apart(tmp_path):
    random = np.random.default_rng(0)
    days = []
    for day in ("2024-05", "2024-06"):
        bands = random.integers(1, 100, (2, 30, 30)).astype("uint16")
        bands[:, random.random((30, 30)) < 0.3] = 0
        bands[0, 0, 0], bands[1, 0, 0] = 5, 0
        days.append(bands)
        for number, band in enumerate(bands, start=2):
            write_raster(tmp_path / day / f"b{number}.tif", band[None], image_affine(), UTM, 0)
    patterns = [str(tmp_path / "*" / "b*.tif")]
    # By grid they are one scene of four bands; by folder two scenes of two.
    assert open_scenes(patterns).num_bands == 4
    for mosaic in ("first", "last", "median"):
        scenes = open_scenes(patterns, SceneOptions(scene_by="folder", mosaic=mosaic))
        assert (scenes.num_bands, scenes.band_names, len(scenes.scenes)) == (2, ("b2", "b3"), 2)
        image, valid = scenes.read(scenes.grid, 0, 0, 30, 30)
        first, second = days if mosaic != "last" else days[::-1]
        has_first, has_second = (first > 0).all(axis=0), (second > 0).all(axis=0)
        np.testing.assert_array_equal(valid, has_first | has_second)
        expected = np.where(has_first, first, np.where(has_second, second, 0))
        if mosaic == "median":
            expected = np.where(has_first & has_second, np.rint((first.astype(float) + second) / 2), expected)
        np.testing.assert_array_equal(image, expected)


def test_files_of_one_folder_need_one_grid(tmp_path):
    write_raster(tmp_path / "a.tif", np.ones((1, 8, 8), "uint8"), image_affine(), UTM)
    write_raster(tmp_path / "b.tif", np.ones((1, 16, 16), "uint8"), image_affine(15), UTM)
    with pytest.raises(UsageError, match=r"b\.tif: lies on another grid than .*a\.tif in the same folder"):
        open_scenes([str(tmp_path / "*.tif")], SceneOptions(scene_by="folder"))


def test_a_mosaic_of_clouds_takes_the_clear_day(tmp_path):
    """Three days with a cloud each: the median of what is clear, and nothing where it never is."""
    random = np.random.default_rng(3)
    images, bands, clear, values = [], [], [], []
    for number in range(3):
        cloudy = random.random((40, 40)) < 0.5
        pixels = np.where(cloudy, 50_000, random.integers(100, 200, (40, 40))).astype("uint16")
        folder = tmp_path / f"day{number}"
        images.append(str(write_raster(folder / "b.tif", pixels[None], image_affine(), UTM)))
        codes = np.where(cloudy, 22280, 21824).astype("uint16")
        bands.append(str(write_raster(folder / "qa.tif", codes[None], image_affine(), UTM)))
        clear.append(~cloudy)
        values.append(pixels)
    options = SceneOptions(scene_by="folder", mosaic="median", quality=tuple(bands))
    image, valid = open_scenes(images, options).read(RasterSource(Path(images[0])).grid, 0, 0, 40, 40)
    stack = np.ma.array(values, mask=~np.array(clear)).astype(float)
    np.testing.assert_array_equal(valid, np.any(clear, axis=0))
    np.testing.assert_array_equal(image[0], np.rint(np.ma.median(stack, axis=0).filled(0)))
