"""Warping by remap: the same pixels whatever the window, at the places that PROJ says, and no source pixel skipped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.warp import reproject, transform
from rasterio.windows import Window

from hpcdl.raster.grid import Grid, parse_crs
from hpcdl.raster.remap import remap_between
from hpcdl.raster.scene import Scenes, open_scenes
from hpcdl.raster.source import RasterSource
from hpcdl.raster.warp import warped_document
from tests.generators import ALBERS, IMAGE_CORNER, UTM, image_affine, write_raster

HEIGHT, WIDTH = 150, 180
# What one source pixel is worth in a band that encodes places: all dtypes hold 180 pixels of it.
STEPS = {"uint8": 1, "int16": 100, "uint16": 300, "int32": 10_000, "float32": 30.0, "float64": 30.0}
NODATA = {"uint8": 255, "int16": -9999, "uint16": 65535, "int32": -1, "float32": -9999.0, "float64": -9999.0}


def grid_of(crs: str, affine: Affine, height: int, width: int) -> Grid:
    return Grid(CRS.from_user_input(crs).to_wkt(), tuple(affine)[:6], height, width)


def turned(pixel_m: float, degrees: float, corner: tuple[float, float]) -> Affine:
    """North-up pixels from a corner, turned around it."""
    cos, sin = pixel_m * math.cos(math.radians(degrees)), pixel_m * math.sin(math.radians(degrees))
    return Affine(cos, sin, corner[0], sin, -cos, corner[1])


def albers_grid(pixel_m: float, size: int = 190, turn: float = 0.0) -> Grid:
    """A grid around the scene at IMAGE_CORNER; it reaches over it on all sides."""
    xs, ys = transform(UTM, ALBERS, [IMAGE_CORNER[0] + WIDTH * 15], [IMAGE_CORNER[1] - HEIGHT * 15])
    count = int(size * 31 / pixel_m)
    a, b, _, d, e, _ = tuple(turned(pixel_m, turn, (0, 0)))[:6]
    half = count / 2
    corner = xs[0] - half * (a + b), ys[0] - half * (d + e)
    return grid_of(ALBERS, turned(pixel_m, turn, corner), count, count)


def places_of(source: Grid, target: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) on the source of the centres of all target pixels, by PROJ pixel for pixel."""
    cols, rows = np.meshgrid(np.arange(target.width) + 0.5, np.arange(target.height) + 0.5)
    x, y = target.to_map(cols, rows)
    xs, ys = transform(parse_crs(target.crs), parse_crs(source.crs), x.ravel(), y.ravel())
    cols, rows = source.to_pixel(np.reshape(xs, x.shape), np.reshape(ys, x.shape))
    return rows, cols


def inside_of(rows: np.ndarray, cols: np.ndarray, height: int, width: int, rim: float = 0.0) -> np.ndarray:
    """Places that are at least `rim` pixels inside a source of that size."""
    return (rows >= rim) & (rows < height - rim) & (cols >= rim) & (cols < width - rim)


def places_image(path: Path, dtype: str, holes: bool, affine: Affine | None = None, crs: str = UTM) -> Path:
    """Two bands that hold column and row of each pixel, in STEPS; holes are nodata, some in one band only."""
    rows, cols = np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), indexing="ij")
    bands = (np.stack([cols, rows]) * STEPS[dtype]).astype(dtype)
    if holes:
        random = np.random.default_rng(5)
        for row, col in random.integers(0, 140, (30, 2)):
            bands[: random.integers(1, 3), row : row + 7, col : col + 5] = NODATA[dtype]
        bands[:, random.random((HEIGHT, WIDTH)) < 0.02] = NODATA[dtype]
    return write_raster(path, bands, affine or image_affine(), crs, NODATA[dtype] if holes else None)


class Case(NamedTuple):
    """A scene on a target grid, read as a whole at once."""

    scenes: Scenes
    grid: Grid
    resampling: str
    image: np.ndarray
    valid: np.ndarray

    def __repr__(self) -> str:
        return f"Case({self.resampling}, {self.image.dtype})"  # hypothesis would write the arrays out


@pytest.fixture(scope="module", params=[31.0, 97.0], ids=["31m", "97m"])
def cases(request, tmp_path_factory) -> dict[tuple[str, str, bool], Case]:
    """Of each pixel type, resampling method and with or without holes."""
    folder = tmp_path_factory.mktemp("places")
    grid = albers_grid(request.param, turn=7.0)
    found = {}
    for dtype in STEPS:
        for holes in (False, True):
            scenes = open_scenes([str(places_image(folder / f"{dtype}-{holes}.tif", dtype, holes))])
            for resampling in ("nearest", "bilinear"):
                image, valid = scenes.read(grid, 0, 0, grid.height, grid.width, resampling)
                found[dtype, resampling, holes] = Case(scenes, grid, resampling, image, valid)
    return found


@pytest.mark.parametrize("holes", [False, True], ids=["whole", "holes"])
@pytest.mark.parametrize("resampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("dtype", list(STEPS))
@settings(max_examples=25, deadline=None)
@given(windows=st.lists(st.tuples(*[st.integers(0, 10**6)] * 4), min_size=1, max_size=4))
def test_any_window_in_any_order_has_the_pixels_of_one_whole_read(cases, dtype, resampling, holes, windows):
    case = cases[dtype, resampling, holes]
    for numbers in windows:
        row, col = numbers[0] % case.grid.height, numbers[1] % case.grid.width
        height = 1 + numbers[2] % min(64, case.grid.height - row)
        width = 1 + numbers[3] % min(64, case.grid.width - col)
        image, valid = case.scenes.read(case.grid, row, col, height, width, resampling)
        where = (slice(row, row + height), slice(col, col + width))
        np.testing.assert_array_equal(valid, case.valid[where])
        np.testing.assert_array_equal(image, case.image[:, *where])


def test_holes_and_rims_are_there_to_be_tested(cases):
    for (dtype, resampling, holes), case in cases.items():
        assert case.image.dtype == dtype
        assert 0.3 < case.valid.mean() < 0.8
        assert not holes or case.valid.sum() < 0.95 * cases[dtype, resampling, False].valid.sum()


@pytest.mark.parametrize(("pixel_m", "size"), [(5.0, 1100), (40.0, 800)])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("resampling", ["nearest", "bilinear"])
def test_windows_of_several_blocks_equal_smaller_ones(tmp_path, pixel_m, size, resampling, dtype):
    random = np.random.default_rng(1)
    values = random.normal(5000, 1000, (1, 300, 300)).astype(dtype)
    source = RasterSource(write_raster(tmp_path / "a.tif", values, image_affine(10), UTM))
    grid = grid_of(UTM, image_affine(pixel_m, (IMAGE_CORNER[0] - 999.7, IMAGE_CORNER[1] + 999.3)), size, size)
    assert size > remap_between(source.grid, grid).block_px
    image, valid = source.read(grid, 0, 0, size, size, resampling)
    assert valid.any()
    for row, col, height, width in ((0, 0, 530, 40), (17, 33, 700, 60), (size - 1, size - 1, 1, 1)):
        part, part_valid = source.read(grid, row, col, height, width, resampling)
        where = (slice(row, row + height), slice(col, col + width))
        np.testing.assert_array_equal(part_valid, valid[where])
        np.testing.assert_array_equal(part[:, part_valid], image[:, *where][:, part_valid])


PAIRS = {
    "utm to albers": (UTM, image_affine(), albers_grid(31.0)),
    "utm to a turned albers": (UTM, image_affine(), albers_grid(31.0, turn=33.0)),
    "utm to degrees": (UTM, image_affine(), grid_of("EPSG:4326", Affine(3e-4, 0, -113.28, 0, -3e-4, 37.48), 190, 250)),
    "utm to the next zone": (
        UTM, image_affine(), grid_of("EPSG:32611", Affine(30, 0, 830_600, 0, -30, 4_157_000), 200, 200),
    ),
    "degrees to utm": (
        "EPSG:4326", Affine(3e-4, 0, -113.25, 0, -3e-4, 37.47), grid_of(UTM, image_affine(30), 190, 190),
    ),
    "web mercator to utm": (
        "EPSG:3857", Affine(38, 0, -12_607_000, 0, -38, 4_503_000), grid_of(UTM, image_affine(30), 190, 190),
    ),
    "sinusoidal to utm": (
        "+proj=sinu +R=6371007.181", Affine(30, 0, -1e7, 0, -30, 4.166e6), grid_of(UTM, image_affine(), 190, 190),
    ),
    "a turned scene": (
        UTM, turned(30, 25, IMAGE_CORNER), grid_of(UTM, image_affine(30, (298_000, 4_152_000)), 250, 250),
    ),
    "a south-up scene": (
        UTM, Affine(30, 0, 300_000, 0, 30, 4_145_500), albers_grid(31.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_pixels_hold_their_own_places(tmp_path, name):
    crs, affine, target = PAIRS[name]
    if name == "sinusoidal to utm":  # its x at the scene
        (x,), (y,) = transform(UTM, crs, [IMAGE_CORNER[0] - 300], [IMAGE_CORNER[1] + 300])
        affine = Affine(30, 0, x, 0, -30, y)
    source = RasterSource(places_image(tmp_path / "a.tif", "float64", False, affine, crs))
    rows, cols = places_of(source.grid, target)
    image, valid = source.read(target, 0, 0, target.height, target.width, "bilinear")
    # Places are good to 2e-5 pixel, so those nearer than that to the rim may fall on either side of it.
    assert (valid == inside_of(rows, cols, HEIGHT, WIDTH))[inside_of(rows, cols, HEIGHT, WIDTH, 1e-4)].all()
    assert not valid[~inside_of(rows, cols, HEIGHT, WIDTH, -1e-4)].any()
    core = inside_of(rows, cols, HEIGHT, WIDTH, 0.5)
    assert core.mean() > 0.1
    if max(remap_between(source.grid, target).reach) > 1:  # a wider kernel leans inwards at the rim
        core = inside_of(rows, cols, HEIGHT, WIDTH, 3)
    found = image / STEPS["float64"] + 0.5
    assert np.abs(found[0] - cols)[core].max() < 1e-3
    assert np.abs(found[1] - rows)[core].max() < 1e-3


@pytest.mark.parametrize("dtype", list(STEPS))
@pytest.mark.parametrize("resampling", ["nearest", "bilinear"])
def test_agrees_with_an_exact_warp_by_gdal(tmp_path, dtype, resampling):
    path = places_image(tmp_path / "a.tif", dtype, False)
    grid = albers_grid(31.0, turn=7.0)
    source = RasterSource(path)
    image, valid = source.read(grid, 0, 0, grid.height, grid.width, resampling)
    expected = np.zeros_like(image)
    with rasterio.open(path) as dataset:
        reproject(
            rasterio.band(dataset, [1, 2]), expected, dst_crs=ALBERS, dst_transform=grid.affine,
            resampling=Resampling[resampling], tolerance=0.0, XSCALE=1, YSCALE=1,
        )  # fmt: skip
    rows, cols = places_of(source.grid, grid)
    clear = inside_of(rows, cols, HEIGHT, WIDTH, 0.5)
    if resampling == "nearest":
        clear &= (np.abs(rows - np.rint(rows)) > 1e-3) & (np.abs(cols - np.rint(cols)) > 1e-3)
    assert clear.sum() > 0.9 * valid.sum()
    difference = np.abs(image.astype(float) - expected)[:, clear]
    # A thousandth of a pixel, and the rounding of whole numbers.
    most = 0 if resampling == "nearest" else 1e-3 * STEPS[dtype] + (np.dtype(dtype).kind != "f")
    assert difference.max() <= most


def gdal_read(source: RasterSource, target: Grid, nodata: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """GDAL's bilinear interpolation with its kernel as wide as a target pixel."""
    document = warped_document(source.path, source.grid, target, source.dtype, {1: nodata}, None, "bilinear")
    with rasterio.open(document) as dataset:
        image, mask = dataset.read(window=Window(0, 0, target.width, target.height))
    return image, mask > 0


@pytest.mark.parametrize(("fine_m", "coarse_m", "size"), [(10, 30, 240), (5, 20, 240), (5, 160, 640)])
@pytest.mark.parametrize("holes", [False, True], ids=["whole", "holes"])
def test_shrinking_by_a_whole_number_is_what_gdal_does(tmp_path, fine_m, coarse_m, size, holes):
    random = np.random.default_rng(3)
    values = random.normal(0, 1000, (size, size)).astype("float32")
    if holes:
        values[random.random((size, size)) < 0.1] = -9999
    path = write_raster(tmp_path / "a.tif", values[None], image_affine(fine_m), UTM, -9999 if holes else None)
    source, count = RasterSource(path), size * fine_m // coarse_m
    grid = grid_of(UTM, image_affine(coarse_m), count, count)
    image, valid = source.read(grid, 0, 0, count, count, "bilinear")
    expected, mask = gdal_read(source, grid, -9999 if holes else None)
    both = valid & mask
    assert both.mean() > (0.7 if holes else 0.99)
    assert np.abs(image[0] - expected)[both].max() < 1e-5 * np.ptp(values)


@pytest.mark.parametrize(("fine_m", "target"), [(30, albers_grid(97.0)), (30, albers_grid(97.0, turn=30)), (10, None)])
def test_shrinking_by_another_number_is_near_what_gdal_does(tmp_path, fine_m, target):
    values = np.random.default_rng(3).integers(0, 10_000, (1, HEIGHT, WIDTH)).astype("uint16")
    source = RasterSource(write_raster(tmp_path / "a.tif", values, image_affine(fine_m), UTM))
    grid = target or grid_of(UTM, image_affine(26.5), 54, 64)
    image, valid = source.read(grid, 0, 0, grid.height, grid.width, "bilinear")
    expected, mask = gdal_read(source, grid)
    both = valid & mask
    assert both.sum() > 1000
    difference = np.abs(image[0].astype(float) - expected)[both]
    assert difference.max() < 0.06 * 10_000
    assert difference.mean() < 0.015 * 10_000


@pytest.mark.parametrize(("fine_m", "coarse_m", "size"), [(10, 30, 120), (30, 97, 150), (5, 160, 640)])
@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "float64"])
def test_a_checkerboard_shrinks_to_its_mean(tmp_path, fine_m, coarse_m, size, dtype):
    values = (np.indices((size, size)).sum(axis=0) % 2 * 2000).astype(dtype)
    source = RasterSource(write_raster(tmp_path / "a.tif", values[None], image_affine(fine_m), UTM))
    count = size * fine_m // coarse_m
    grid = grid_of(UTM, image_affine(coarse_m), count, count)
    image, valid = source.read(grid, 0, 0, count, count, "bilinear")
    assert valid.all()
    # Three pixels in two directions hold 1/81 more of one colour than of the other; the rim has fewer of them.
    assert np.abs(image[0, 1:-1, 1:-1].astype(float) - 1000).max() <= 1000 / 81 + 1
    assert np.abs(image[0].astype(float) - 1000).max() < 100


@pytest.mark.parametrize(("fine_m", "coarse_m"), [(10, 30), (10, 32.3), (10, 10.6), (10, 19)])
def test_no_source_pixel_is_skipped(tmp_path, fine_m, coarse_m):
    random = np.random.default_rng(2)
    places = random.integers(4, 86, (30, 2))
    for number, (row, col) in enumerate(places.tolist()):
        values = np.zeros((1, 90, 90), "float32")
        values[0, row, col] = 1
        source = RasterSource(write_raster(tmp_path / f"{number}.tif", values, image_affine(fine_m), UTM))
        count = int(90 * fine_m / coarse_m)
        grid = grid_of(UTM, image_affine(coarse_m), count, count)
        image, _ = source.read(grid, 0, 0, count, count, "bilinear")
        # What a source pixel adds over the whole target: its own area, less or more by how the lattices meet.
        assert 0.5 < image.sum() * (coarse_m / fine_m) ** 2 < 1.8, (row, col)


@pytest.mark.parametrize("dtype", list(STEPS))
@pytest.mark.parametrize("grid", [albers_grid(97.0), albers_grid(31.0, turn=12), albers_grid(9.0)])
def test_nodata_never_bleeds(tmp_path, dtype, grid):
    random = np.random.default_rng(4)
    values = np.full((2, HEIGHT, WIDTH), 101, dtype)
    values[0, random.random((HEIGHT, WIDTH)) < 0.2] = NODATA[dtype]
    values[1, 60:90, 60:90] = NODATA[dtype]
    scenes = open_scenes([str(write_raster(tmp_path / "a.tif", values, image_affine(), UTM, NODATA[dtype]))])
    image, valid = scenes.read(grid, 0, 0, grid.height, grid.width)
    assert valid.any()
    if np.dtype(dtype).kind == "f":
        np.testing.assert_allclose(image[:, valid], 101, rtol=1e-6)
        assert np.isnan(image[:, ~valid]).all()
    else:
        assert set(np.unique(image[:, valid])) == {101}
        assert set(np.unique(image[:, ~valid])) == {0}


@pytest.mark.parametrize("resampling", ["nearest", "bilinear"])
def test_targets_outside_and_half_outside(tmp_path, resampling):
    source = RasterSource(places_image(tmp_path / "a.tif", "uint16", False))
    for corner in ((500_000.0, 4_150_000.0), (299_000.3, 4_151_000.3), (300_000.0, 7_000_000.0)):
        grid = grid_of(UTM, image_affine(29.0, corner), 120, 110)
        rows, cols = places_of(source.grid, grid)
        _, valid = source.read(grid, 0, 0, 120, 110, resampling)
        np.testing.assert_array_equal(valid, inside_of(rows, cols, HEIGHT, WIDTH))
    # Far outside of where the zone is meant for, too.
    far = grid_of(ALBERS, Affine(31, 0, 2_000_000, 0, -31, 1_000_000), 50, 50)
    assert not source.read(far, 0, 0, 50, 50, resampling)[1].any()


def test_one_pixel_windows(tmp_path):
    source = RasterSource(places_image(tmp_path / "a.tif", "int16", True))
    grid = albers_grid(31.0)
    image, valid = source.read(grid, 0, 0, grid.height, grid.width, "bilinear")
    random = np.random.default_rng(0)
    for row, col in random.integers(0, grid.height, (100, 2)).tolist():
        pixel, held = source.read(grid, row, col, 1, 1, "bilinear")
        assert held[0, 0] == valid[row, col]
        if held[0, 0]:
            np.testing.assert_array_equal(pixel[:, 0, 0], image[:, row, col])
    # A source and a target of one pixel each.
    tiny = RasterSource(write_raster(tmp_path / "b.tif", np.full((1, 1, 1), 7, "uint8"), image_affine(), UTM))
    near = grid_of(UTM, image_affine(20, (300_001, 4_149_999)), 1, 1)
    assert tiny.read(near, 0, 0, 1, 1, "bilinear")[0].item() == 7


def world_image(path: Path, width: int = 720) -> RasterSource:
    """The world in degrees; each pixel holds its own number."""
    values = np.arange(width * 360, dtype="float64").reshape(1, 360, width)
    affine = Affine(360 / width, 0, -180, 0, -0.5, 90)
    return RasterSource(write_raster(path, values, affine, "EPSG:4326"))


@pytest.mark.parametrize("pixel_m", [40_000.0, 10_000.0])
def test_a_polar_grid_of_a_mercator_source(tmp_path, pixel_m):
    """Mercator has no pole, and the centre of the middle pixel lies on it."""
    source = RasterSource(
        write_raster(
            tmp_path / "m.tif", np.full((1, 200, 200), 5, "uint16"), Affine(2e5, 0, -2e7, 0, -2e5, 2e7), "EPSG:3857"
        )
    )
    count = int(4e6 / pixel_m) + 1
    grid = grid_of(
        "EPSG:3413", Affine(pixel_m, 0, -count * pixel_m / 2, 0, -pixel_m, count * pixel_m / 2), count, count
    )
    for resampling in ("nearest", "bilinear", "cubic"):
        image, valid = source.read(grid, 0, 0, count, count, resampling)
        # The source ends at 85° north: around the pole nothing is there, beyond it all is.
        assert not valid[count // 2, count // 2]
        assert valid[0, count // 2]
        assert 0.7 < valid.mean() < 1
        assert set(np.unique(image[0][valid])) == {5}


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic"])
def test_a_weather_grid_whose_first_pixels_lie_on_the_pole(tmp_path, resampling):
    """Rows of centres from 90° north to 90° south, as ERA5 has them: Mercator has no place for the first and last."""
    mercator = Affine(2e5, 0, -2e7, 0, -2e5, 2e7)
    source = RasterSource(write_raster(tmp_path / "m.tif", np.full((1, 200, 200), 5, "uint16"), mercator, "EPSG:3857"))
    grid = grid_of("EPSG:4326", Affine(1, 0, -180, 0, -1, 90.5), 181, 360)
    image, valid = source.read(grid, 0, 0, 181, 360, resampling)
    assert not valid[[0, -1]].any()
    assert valid[10:-10, 2:-2].all()
    assert set(np.unique(image[0][valid])) == {5}
    part, part_valid = source.read(grid, 0, 100, 30, 30, resampling)
    np.testing.assert_array_equal(part_valid, valid[:30, 100:130])
    np.testing.assert_array_equal(part[0][part_valid], 5)


def test_a_disk_seen_from_space_is_whole_up_to_its_limb(tmp_path):
    """Only those pixels are without data for which PROJ itself has no answer, not all that lie near them."""
    values = np.full((1, 270, 270), 5, "uint16")
    disk = Affine(4e4, 0, -5.4e6, 0, -4e4, 5.4e6)
    source = RasterSource(write_raster(tmp_path / "d.tif", values, disk, "+proj=geos +h=35786023 +lon_0=0 +sweep=x"))
    grid = grid_of("EPSG:4326", Affine(0.5, 0, -90, 0, -0.5, 90), 360, 360)
    _, valid = source.read(grid, 0, 0, 360, 360, "bilinear")
    lon, lat = np.meshgrid(np.arange(-89.75, 90, 0.5), np.arange(89.75, -90, -0.5))
    # On a sphere the limb is at 81.3° from the middle; the picture ends at 75°.
    from_middle = np.degrees(np.arccos(np.cos(np.radians(lat)) * np.cos(np.radians(lon))))
    assert valid[from_middle < 74].all()
    assert not valid[from_middle > 83].any()


@pytest.mark.parametrize("pixel_m", [1000.0, 60_000.0])
def test_a_target_across_the_antimeridian(tmp_path, pixel_m):
    source = world_image(tmp_path / "w.tif")
    count = int(700_000 / pixel_m)
    # UTM zone 60 from 177° east to beyond 180°, around 65° north.
    grid = grid_of("EPSG:32660", Affine(pixel_m, 0, 400_000, 0, -pixel_m, 7_500_000), count, count)
    rows, cols = places_of(source.grid, grid)
    assert (cols > 360).any()
    assert (cols < 360).any()
    image, valid = source.read(grid, 0, 0, count, count, "nearest")
    assert valid.all()
    clear = (np.abs(rows - np.rint(rows)) > 1e-3) & (np.abs(cols - np.rint(cols)) > 1e-3)
    expected = np.floor(rows).clip(0, 359) * 720 + np.floor(cols).clip(0, 719)
    np.testing.assert_array_equal(image[0][clear], expected[clear])
    image, valid = source.read(grid, 0, 0, count, count, "bilinear")
    # Between pixels of one row the number is the column, but for the half pixels at the world's edge.
    core = inside_of(rows, cols, 360, 720, 0.5)
    np.testing.assert_allclose(image[0][core], ((rows - 0.5) * 720 + cols - 0.5)[core], atol=0.5)


@pytest.mark.parametrize("west", [-180, 170])
def test_a_scene_across_the_antimeridian_on_a_grid_in_degrees(tmp_path, west):
    """The box around such a scene has its west east of its east: no window may lose the scene for that."""
    values = np.full((1, 100, 100), 5, "uint8")
    scenes = open_scenes(
        [str(write_raster(tmp_path / "a.tif", values, Affine(5000, 0, 400_000, 0, -5000, 7_500_000), "EPSG:32660"))]
    )
    # The whole world; and 20 degrees, whose east is at 190.
    grid = grid_of("EPSG:4326", Affine(0.5, 0, west, 0, -0.5, 75), 40, 720 if west == -180 else 40)
    starts = (0, 4, 10, 704, 712) if west == -180 else (0, 8, 16, 20, 24, 32)
    seen = []
    for col in starts:
        rows, cols = places_of(scenes.grid, grid.window(0, col, 40, 8))
        expected = inside_of(rows, cols, 100, 100)
        np.testing.assert_array_equal(scenes.read(grid, 0, col, 40, 8, "nearest")[1], expected)
        seen.append(expected.any())
    assert sum(seen) >= 3


@pytest.mark.parametrize("resampling", ["nearest", "bilinear"])
def test_a_window_that_needs_more_of_the_source_than_opencv_takes(tmp_path, resampling):
    """Across the antimeridian a small window lies on both ends of the source, here 40 000 pixels apart."""
    width = 40_000
    values = np.zeros((1, 60, width), "uint8")
    values[0, :, :] = np.arange(width) // 200
    affine = Affine(360 / width, 0, -180, 0, -0.05, 66)
    source = RasterSource(write_raster(tmp_path / "w.tif", values, affine, "EPSG:4326"))
    grid = grid_of("EPSG:32660", Affine(1000, 0, 620_000, 0, -1000, 7_250_000), 60, 60)
    rows, cols = places_of(source.grid, grid)
    assert cols.max() - cols.min() > 39_000
    image, valid = source.read(grid, 0, 0, 60, 60, resampling)
    np.testing.assert_array_equal(valid, inside_of(rows, cols, 60, width))
    clear = np.abs(cols / 200 - np.rint(cols / 200)) > 0.01
    np.testing.assert_array_equal(image[0][valid & clear], (cols // 200)[valid & clear])
