from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp, Resampling
from rasterio.warp import reproject, transform

from hpcdl.errors import FailedError, UsageError
from hpcdl.raster.grid import Grid
from hpcdl.raster.labels import open_labels
from hpcdl.raster.scene import SceneOptions, Scenes, open_scenes
from hpcdl.raster.source import open_once
from hpcdl.raster.warp import RESAMPLINGS
from tests.generators import (
    ALBERS,
    IMAGE_CORNER,
    NODATA,
    UTM,
    centres,
    coordinate_image,
    damage_tile,
    image_affine,
    landcover_files,
    truncate,
    write_raster,
)


def read_tiles(scenes: Scenes, grid: Grid, height: int, width: int, resampling: str):
    image = np.zeros((scenes.num_bands, grid.height, grid.width), scenes.dtype)
    valid = np.zeros((grid.height, grid.width), bool)
    for row in range(0, grid.height, height):
        for col in range(0, grid.width, width):
            h, w = min(height, grid.height - row), min(width, grid.width - col)
            part = scenes.read(grid, row, col, h, w, resampling)
            image[:, row : row + h, col : col + w], valid[row : row + h, col : col + w] = part
    return image, valid


@pytest.mark.parametrize("resampling", [name for name in RESAMPLINGS if name != "mode"])
def test_tiles_equal_one_read_of_the_whole(tmp_path, resampling):
    files = landcover_files(tmp_path)
    grid = open_labels(files.labels).grid
    scenes = open_scenes([files.glob])
    image, valid = scenes.read(grid, 0, 0, grid.height, grid.width, resampling)
    assert 0.5 < valid.mean() < 1
    for height, width in ((37, 23), (7, grid.width)):
        tiles, tiles_valid = read_tiles(open_scenes([files.glob]), grid, height, width, resampling)
        np.testing.assert_array_equal(tiles, image)
        np.testing.assert_array_equal(tiles_valid, valid)


def test_tiles_equal_the_whole_at_half_pixel_ties_and_when_shrinking(tmp_path):
    # Half-pixel shifts put every nearest and bilinear choice on a tie; a shrinking grid widens the kernel.
    random = np.random.default_rng(0)
    path = write_raster(tmp_path / "a.tif", random.integers(0, 9, (1, 90, 90)).astype("uint16"), image_affine(), UTM)
    scenes = open_scenes([str(path)])
    for a, shift, size in ((30.0, 15.0, 88), (97.0, 11.0, 27)):
        grid = Grid(scenes.grid.crs, (a, 0, 300_000 + shift, 0, -a, 4_150_000 - shift), size, size)
        for resampling in ("nearest", "bilinear", "cubic", "average"):
            whole = scenes.read(grid, 0, 0, size, size, resampling)
            tiles = read_tiles(open_scenes([str(path)]), grid, 13, 11, resampling)
            np.testing.assert_array_equal(tiles[0], whole[0])
            np.testing.assert_array_equal(tiles[1], whole[1])


def test_bilinear_pixels_hold_their_own_coordinates(tmp_path):
    path = coordinate_image(tmp_path / "xy.tif")
    labels = landcover_files(tmp_path / "l", 120, 140).labels
    grid = open_labels(labels).grid
    image, valid = open_scenes([str(path)]).read(grid, 0, 0, grid.height, grid.width)
    x, y = centres(grid.affine, grid.height, grid.width)
    utm_x, utm_y = (np.reshape(v, x.shape) for v in transform(ALBERS, UTM, x.ravel(), y.ravel()))
    expected_x, expected_y = utm_x - IMAGE_CORNER[0], IMAGE_CORNER[1] - utm_y
    inside = (expected_x > 0) & (expected_x < 140 * 30) & (expected_y > 0) & (expected_y < 120 * 30)
    np.testing.assert_array_equal(valid, inside)
    # Half a pixel from the rim there is nothing to interpolate with.
    core = inside & (expected_x > 15) & (expected_x < 140 * 30 - 15) & (expected_y > 15) & (expected_y < 120 * 30 - 15)
    # In metres, of pixels of 30 m: 2e-4 of a pixel.
    assert np.abs(image[0][core] - expected_x[core]).max() < 6e-3
    assert np.abs(image[1][core] - expected_y[core]).max() < 6e-3


def test_nearest_takes_the_pixel_that_holds_the_centre(tmp_path):
    files = landcover_files(tmp_path, nodata_px=0)
    grid = open_labels(files.labels).grid
    image, valid = open_scenes([files.glob]).read(grid, 0, 0, grid.height, grid.width, "nearest")
    x, y = centres(grid.affine, grid.height, grid.width)
    utm_x, utm_y = (np.reshape(v, x.shape) for v in transform(ALBERS, UTM, x.ravel(), y.ravel()))
    rows, cols = (IMAGE_CORNER[1] - utm_y) / 30, (utm_x - IMAGE_CORNER[0]) / 30
    # Coordinates are good to 2e-5 pixel: a centre that lies so near to a border may fall on either side of it.
    clear = valid & (np.abs(rows - np.rint(rows)) > 1e-4) & (np.abs(cols - np.rint(cols)) > 1e-4)
    assert clear.sum() > 0.999 * valid.sum()
    with rasterio.open(files.images[1]) as dataset:
        expected = dataset.read(1)[rows[clear].astype(int), cols[clear].astype(int)]
    np.testing.assert_array_equal(image[1][clear], expected)


@pytest.mark.parametrize("resampling", ["bilinear", "cubic"])
def test_agrees_with_one_warp_of_the_whole_scene(tmp_path, resampling):
    files = landcover_files(tmp_path, nodata_px=0)
    grid = open_labels(files.labels).grid
    image, valid = open_scenes([files.glob]).read(grid, 0, 0, grid.height, grid.width, resampling)
    expected = np.zeros((grid.height, grid.width), np.uint16)
    with rasterio.open(files.images[0]) as dataset:
        reproject(
            rasterio.band(dataset, 1), expected, dst_crs=ALBERS, dst_transform=grid.affine, dst_nodata=NODATA,
            resampling=Resampling[resampling], tolerance=0.0,
        )  # fmt: skip
    assert np.abs(image[0][valid].astype(int) - expected[valid]).max() <= 1


def test_invalid_pixels_hold_the_fill_and_never_bleed(tmp_path):
    values = np.full((2, 60, 60), 1000, "uint16")
    values[0, 20:30, 20:30] = NODATA  # one band only: the pixel counts as empty in both
    path = write_raster(tmp_path / "a.tif", values, image_affine(), UTM, NODATA)
    scenes = open_scenes([str(path)])
    shifted = Grid(scenes.grid.crs, tuple(image_affine(29.0, (300_007.0, 4_149_991.0)))[:6], 60, 60)
    for resampling in ("nearest", "bilinear", "cubic", "lanczos", "average"):
        image, valid = scenes.read(shifted, 0, 0, 60, 60, resampling)
        assert set(np.unique(image[:, valid])) == {1000}
        assert set(np.unique(image[:, ~valid])) == {0}
        assert 60 < (~valid).sum() < 140


@pytest.mark.parametrize("how", ["nan", "mask", "alpha", "nan-and-nodata"])
def test_every_way_to_say_no_data_is_understood(tmp_path, how):
    hole = np.zeros((50, 50), bool)
    hole[10:20, 30:40] = True
    path = tmp_path / "a.tif"
    if how in ("nan", "nan-and-nodata"):
        values = np.full((1, 50, 50), 5.0, "float32")
        values[:, hole] = np.nan
        nodata = None
        if how == "nan-and-nodata":
            values[0, 0, 0], nodata = -9999, -9999
            hole[0, 0] = True
        write_raster(path, values, image_affine(), UTM, nodata)
    elif how == "mask":
        values = np.where(hole, 9000, 5)[None].astype("uint16")
        write_raster(path, values, image_affine(), UTM, mask_HW=~hole)
    else:
        values = np.stack([np.where(hole, 200, 5), np.where(hole, 0, 255)]).astype("uint8")
        write_raster(path, values, image_affine(), UTM)
        with rasterio.open(path, "r+") as dataset:
            dataset.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
    scenes = open_scenes([str(path)])
    assert scenes.num_bands == 1
    own, own_valid = scenes.read(scenes.grid, 0, 0, 50, 50)
    np.testing.assert_array_equal(own_valid, ~hole)
    assert (own[0][~hole] == 5).all()
    if how.startswith("nan"):
        assert math.isnan(scenes.fill)
        assert np.isnan(own[:, hole]).all()
    shifted = Grid(scenes.grid.crs, scenes.grid.window_transform(0.3, 0.3), 49, 49)
    image, valid = scenes.read(shifted, 0, 0, 49, 49)
    np.testing.assert_allclose(image[:, valid], 5, rtol=1e-6)
    assert 60 < (~valid).sum() < 150


def test_a_window_of_the_own_grid_is_copied_and_may_reach_outside(tmp_path):
    path = coordinate_image(tmp_path / "xy.tif")
    scenes = open_scenes([str(path)])
    wide = scenes.grid.window(-5, -6, 140, 160)
    image, valid = scenes.read(wide, 0, 0, 140, 160, "cubic")
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(image[:, 5:125, 6:146], dataset.read())
    assert valid[5:125, 6:146].all()
    assert valid.sum() == 120 * 140
    assert np.isnan(image[:, 0, 0]).all()


def test_files_on_one_grid_stack_in_natural_order(tmp_path):
    for number in (10, 2, 1):
        values = np.full((1, 8, 8), number, "uint8")
        write_raster(tmp_path / f"s_b{number}.tif", values, image_affine(), UTM)
    scenes = open_scenes([str(tmp_path / "s_b*.tif")])
    assert scenes.band_names == ("s_b1", "s_b2", "s_b10")
    assert scenes.read(scenes.grid, 0, 0, 1, 1)[0].ravel().tolist() == [1, 2, 10]
    given = open_scenes([str(tmp_path / name) for name in ("s_b10.tif", "s_b1.tif")])
    assert given.band_names == ("s_b10", "s_b1")


def test_the_first_scene_with_data_wins(tmp_path):
    first = np.full((1, 20, 20), 1, "uint8")
    first[0, :5] = 0
    write_raster(tmp_path / "1.tif", first, image_affine(), UTM, nodata=0)
    second_affine = image_affine(corner=(300_000 + 300, 4_150_000))
    write_raster(tmp_path / "2.tif", np.full((1, 20, 20), 2, "uint8"), second_affine, UTM, nodata=0)
    scenes = open_scenes([str(tmp_path / "1.tif"), str(tmp_path / "2.tif")])
    assert len(scenes.scenes) == 2
    assert (scenes.grid.height, scenes.grid.width) == (20, 30)
    image, valid = scenes.read(scenes.grid, 0, 0, 20, 30)
    assert (image[0, 5:, :20] == 1).all()
    assert (image[0, :, 20:] == 2).all()
    assert (image[0, :5, 10:20] == 2).all()
    assert not valid[:5, :10].any()


@pytest.mark.parametrize(
    "name",
    [
        "with space",
        'it\'s "quoted"',
        "$(touch hacked)",
        "ünï-日本",
        "a[1]",
        "a*b?",
        "a&b<c>",
        "-dash",
        "a#b!c",
        "{job_id}",
    ],
)
def test_odd_file_names_work(tmp_path, name):
    path = coordinate_image(tmp_path / name / f"{name}.tif", 20, 20)
    scenes = open_scenes([str(path)])
    a, b, c, d, e, f = scenes.grid.transform
    grid = Grid(scenes.grid.crs, (a * 1.1, b, c, d, e * 1.1, f), 10, 10)
    assert scenes.read(grid, 0, 0, 10, 10)[1].all()
    assert scenes.read(scenes.grid, 0, 0, 10, 10)[1].all()
    assert open_scenes([str(tmp_path / name.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]") / "*.tif")])
    assert not list(Path.cwd().glob("hacked"))


def test_pickling_and_forking_leave_open_files_behind(tmp_path, monkeypatch):
    files = landcover_files(tmp_path)
    grid = open_labels(files.labels).grid
    scenes = open_scenes([files.glob])
    expected = scenes.read(grid, 3, 4, 20, 20)[0]
    copy = pickle.loads(pickle.dumps(scenes))  # noqa: S301
    np.testing.assert_array_equal(copy.read(grid, 3, 4, 20, 20)[0], expected)
    inherited = open_once(files.images[0])
    assert open_once(files.images[0]) is inherited
    monkeypatch.setattr("hpcdl.raster.source.os.getpid", lambda: -1)  # as in a forked child
    np.testing.assert_array_equal(copy.read(grid, 3, 4, 20, 20)[0], expected)
    assert open_once(files.images[0]) is not inherited


def test_only_so_many_files_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr("hpcdl.raster.source._MOST_OPEN", 2)
    paths = [coordinate_image(tmp_path / f"{number}.tif", 20, 20) for number in range(4)]
    opened = [open_once(path) for path in paths]
    assert [dataset.closed for dataset in opened] == [True, True, False, False]
    assert not open_once(paths[0]).closed


def test_missing_crs_is_refused_and_can_be_given(tmp_path):
    path = write_raster(tmp_path / "bare.tif", np.ones((1, 8, 8), "uint8"), image_affine(), None)
    with pytest.raises(UsageError, match=r"bare\.tif: has no coordinate system.*--image-crs"):
        open_scenes([str(path)])
    scenes = open_scenes([str(path)], SceneOptions(crs=UTM))
    grid = Grid(scenes.grid.crs, scenes.grid.window_transform(0.5, 0.5), 6, 6)
    assert scenes.read(grid, 0, 0, 6, 6)[1].all()


def test_missing_georeference_is_refused(tmp_path):
    path = tmp_path / "plain.tif"
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        write_raster(path, np.ones((1, 8, 8), "uint8"), rasterio.Affine.identity(), UTM)
    with pytest.raises(UsageError, match=r"plain\.tif: has no georeference"):
        open_scenes([str(path)])


def test_differing_band_counts_are_refused_naming_both(tmp_path):
    write_raster(tmp_path / "one.tif", np.ones((1, 8, 8), "uint8"), image_affine(), UTM)
    write_raster(tmp_path / "three.tif", np.ones((3, 9, 9), "uint8"), image_affine(), UTM)
    with pytest.raises(UsageError, match=r"three\.tif.*3 bands.*one\.tif.*1 band "):
        open_scenes([str(tmp_path / "one.tif"), str(tmp_path / "three.tif")])


def test_differing_pixel_types_are_refused_naming_both(tmp_path):
    write_raster(tmp_path / "a.tif", np.ones((1, 8, 8), "uint8"), image_affine(), UTM)
    write_raster(tmp_path / "b.tif", np.ones((1, 8, 8), "uint16"), image_affine(), UTM)
    with pytest.raises(UsageError, match=r"b\.tif: pixel type uint16.*a\.tif has uint8"):
        open_scenes([str(tmp_path / "a.tif"), str(tmp_path / "b.tif")])


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.98])
def test_truncated_files_are_refused_by_name(tmp_path, keep):
    files = landcover_files(tmp_path)
    truncate(files.images[2], keep)
    with pytest.raises(UsageError, match=r"band_b4\.tif: not readable as a raster"):
        open_scenes([files.glob])


def test_damage_inside_a_file_is_named_when_its_window_is_read(tmp_path):
    path = write_raster(tmp_path / "a.tif", np.ones((1, 256, 256), "uint16"), image_affine(), UTM)
    scenes = open_scenes([str(damage_tile(path, 1, 2))])
    shifted = Grid(scenes.grid.crs, scenes.grid.window_transform(0.4, 0.4), 255, 255)
    assert scenes.read(scenes.grid, 0, 0, 64, 128)[1].all()
    for grid in (scenes.grid, shifted):
        with pytest.raises(FailedError, match=r"a\.tif: not readable in rows 0–255"):
            scenes.read(grid, 0, 0, 255, 255)


def test_files_that_are_not_there_or_no_rasters(tmp_path):
    (tmp_path / "text.tif").write_text("hello")
    with pytest.raises(UsageError, match="no file matches"):
        open_scenes([str(tmp_path / "*.tiff")])
    with pytest.raises(UsageError, match="no such file"):
        open_scenes([str(tmp_path / "a.tif")])
    with pytest.raises(UsageError, match="is a folder"):
        open_scenes([str(tmp_path)])
    with pytest.raises(UsageError, match=r"text\.tif: not readable as a raster"):
        open_scenes([str(tmp_path / "text.tif")])
    with pytest.raises(UsageError, match="no image"):
        open_scenes([])
    path = str(coordinate_image(tmp_path / "a.tif"))
    with pytest.raises(UsageError, match=r"a\.tif: the image is given twice"):
        open_scenes([path, str(tmp_path / "a*.tif")])
    scenes = open_scenes([path])
    with pytest.raises(UsageError, match="resampling 'cubik'"):
        scenes.read(scenes.grid, 0, 0, 4, 4, "cubik")
