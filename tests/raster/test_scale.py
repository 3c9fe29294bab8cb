"""Gains and offsets: by name, in numbers, from the files, scene by scene."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import rasterio

from hpcdl.errors import UsageError
from hpcdl.raster.grid import Grid
from hpcdl.raster.scale import Scale, parse_scale
from hpcdl.raster.scene import SceneOptions, Scenes, open_scenes
from hpcdl.raster.source import RasterSource
from tests.generators import UTM, image_affine, write_raster


def scene(folder: Path, name: str, values, affine=None, nodata=None, tags=None, dtype: str = "uint16") -> str:
    bands = np.broadcast_to(np.asarray(values, dtype)[:, None, None], (len(values), 20, 20)).copy()
    path = write_raster(folder / name, bands, affine or image_affine(), UTM, nodata)
    if tags:
        with rasterio.open(path, "r+") as dataset:
            dataset.scales, dataset.offsets = tags
    return str(path)


def read(scenes: Scenes) -> tuple[np.ndarray, np.ndarray]:
    return scenes.read(scenes.grid, 0, 0, scenes.grid.height, scenes.grid.width)


NAMED = {"landsat-c2-sr": (0.0000275, -0.2), "landsat-c2-st": (0.00341802, 149.0), "sentinel2-l2a": (0.0001, -0.1)}


def test_each_bundled_scale_is_tested():
    assert {path.stem for path in Path("configs/scales").glob("*.yaml")} == set(NAMED)


@pytest.mark.parametrize("name", NAMED)
def test_by_name(tmp_path, name):
    gain, offset = NAMED[name]
    scenes = open_scenes([scene(tmp_path, "a.tif", [0, 10_000, 65_535])], SceneOptions(scale=(name,)))
    image, valid = read(scenes)
    assert image.dtype == np.dtype(scenes.dtype) == np.float32
    assert valid.all()
    expected = np.float32(np.array([0, 10_000, 65_535]) * gain + offset)
    np.testing.assert_array_equal(image[:, 0, 0], expected)


@pytest.mark.parametrize(
    ("text", "gain", "offset"),
    [("0.5", 0.5, 0.0), ("2,-1", 2.0, -1.0), ("1e-4, 3", 1e-4, 3.0), ("-1", -1.0, 0.0), ("1,0", 1.0, 0.0)],
)
def test_in_numbers(tmp_path, text, gain, offset):
    sources = [RasterSource(Path(scene(tmp_path, "a.tif", [3, 4])))]
    assert parse_scale(text, sources) == Scale((gain, gain), (offset, offset))


@pytest.mark.parametrize(
    "text",
    ["", ",", "0", "0,1", "1,2,3", "nan", "inf", "1,nan", "-inf,0", "1;2", "1 2", "landsat", "File", "1,", "0x1"],
)
def test_what_is_no_scale_is_refused_in_one_line(tmp_path, text):
    image = scene(tmp_path, "a.tif", [3])
    with pytest.raises(UsageError, match=r"--scale") as error:
        open_scenes([image], SceneOptions(scale=(text,)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["gain: 2", "gain: x\noffset: 1", "- 2", "{", "gain: .nan\noffset: 1", "gain: 0\noffset: 1", "gain: [1]"]
)
def test_a_faulty_file_is_named(tmp_path, monkeypatch, text):
    (tmp_path / "configs" / "scales").mkdir(parents=True)
    (tmp_path / "configs" / "scales" / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    image = scene(tmp_path, "a.tif", [3])
    with pytest.raises(UsageError, match=r"mine\.yaml") as error:
        open_scenes([image], SceneOptions(scale=("mine",)))
    assert "\n" not in str(error.value)


def test_the_users_own_names_come_first(tmp_path, monkeypatch):
    (tmp_path / "configs" / "scales").mkdir(parents=True)
    (tmp_path / "configs" / "scales" / "landsat-c2-sr.yaml").write_text("gain: 2\noffset: 1\n")
    monkeypatch.chdir(tmp_path)
    sources = [RasterSource(Path(scene(tmp_path, "a.tif", [3])))]
    assert parse_scale("landsat-c2-sr", sources) == Scale((2.0,), (1.0,))


def test_what_the_files_declare_band_by_band(tmp_path):
    images = [
        scene(tmp_path, "b1.tif", [100, 200], tags=((0.1, 0.2), (1.0, -2.0))),
        scene(tmp_path, "b2.tif", [300], tags=((0.5,), (0.0,))),
    ]
    scenes = open_scenes(images, SceneOptions(scale=("file",)))
    image, _ = read(scenes)
    np.testing.assert_allclose(image[:, 0, 0], [11.0, 38.0, 150.0], rtol=1e-6)
    plain = scene(tmp_path, "b3.tif", [300])
    with pytest.raises(UsageError, match=r"b3\.tif: declares no gain and offset of its own; .*landsat-c2-sr"):
        open_scenes([*images, plain], SceneOptions(scale=("file",)))


NEXT = image_affine(corner=(300_000 + 300, 4_150_000))


def test_one_for_each_scene(tmp_path):
    images = [scene(tmp_path, "a.tif", [10]), scene(tmp_path, "b.tif", [10], NEXT)]
    image, _ = read(open_scenes(images, SceneOptions(scale=("2", "3,1"))))
    assert (image[0, :, :20] == 20).all()
    assert (image[0, :, 20:] == 31).all()
    image, _ = read(open_scenes(images, SceneOptions(scale=("2,5",))))
    assert (image == 25).all()
    for texts in (("2", "3", "4"), ("1",) * 5):
        with pytest.raises(UsageError, match=rf"--scale is given {len(texts)} times for 2 scenes"):
            open_scenes(images, SceneOptions(scale=texts))


@pytest.mark.parametrize("mosaic", ["first", "last", "median"])
@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic"])
def test_results_are_float32_with_nan_where_nothing_is(tmp_path, mosaic, resampling):
    image_a = np.full((2, 20, 20), 1000, "uint16")
    image_a[0, :5] = 65535
    write_raster(tmp_path / "a.tif", image_a, image_affine(), UTM, 65535)
    b = scene(tmp_path, "b.tif", [3000, 3000], NEXT, 65535)
    options = SceneOptions(scale=("0.001", "0.001,-1"), mosaic=mosaic)
    scenes = open_scenes([str(tmp_path / "a.tif"), b], options)
    assert math.isnan(scenes.fill)
    grid = Grid(scenes.grid.crs, tuple(image_affine(29.0, (300_003.0, 4_149_996.0)))[:6], 18, 28)
    image, valid = scenes.read(grid, 0, 0, 18, 28, resampling)
    assert image.dtype == np.float32
    assert np.isnan(image[:, ~valid]).all()
    assert np.isfinite(image[:, valid]).all()
    assert not valid[:4, :9].any()
    both, only_a, only_b = image[:, 8:, 12:18], image[:, 8:, :8], image[:, :, 22:]
    np.testing.assert_allclose(only_a, 1.0, rtol=1e-6)
    np.testing.assert_allclose(only_b, 2.0, rtol=1e-6)
    np.testing.assert_allclose(both, {"first": 1.0, "last": 2.0, "median": 1.5}[mosaic], rtol=1e-6)


def test_scaling_comes_after_interpolation_and_is_worked_out_in_float64(tmp_path):
    values = np.arange(400, dtype="uint16").reshape(1, 20, 20)
    path = str(write_raster(tmp_path / "a.tif", values, image_affine(), UTM))
    plain, scaled = open_scenes([path]), open_scenes([path], SceneOptions(scale=("0.0000275,-0.2",)))
    grid = Grid(plain.grid.crs, tuple(image_affine(29.0, (300_003.0, 4_149_996.0)))[:6], 20, 20)
    numbers, _ = plain.read(grid, 0, 0, 20, 20)
    image, valid = scaled.read(grid, 0, 0, 20, 20)
    np.testing.assert_array_equal(image[:, valid], np.float32(numbers[:, valid] * 0.0000275 - 0.2))


@pytest.mark.parametrize("nodata", [-1.7976931348623157e308, 1e300, -3.4028234663852886e38])
@pytest.mark.parametrize("resampling", ["nearest", "bilinear"])
def test_huge_nodata_values_warn_nobody(tmp_path, nodata, resampling):
    """GDAL's favourite nodata values overflow float32; the pixels are without data anyway."""
    values = np.full((1, 20, 20), 2.0)
    values[0, 5:9, 5:9] = nodata
    path = str(write_raster(tmp_path / "a.tif", values, image_affine(), UTM, nodata))
    for text in ("1", "10,1"):
        scenes = open_scenes([path], SceneOptions(scale=(text,)))
        for offset in (0, 0.3):
            grid = Grid(scenes.grid.crs, scenes.grid.window_transform(offset, offset), 19, 19)
            image, valid = scenes.read(grid, 0, 0, 19, 19, resampling)
            assert not valid.all()
            np.testing.assert_allclose(image[0][valid], {"1": 2.0, "10,1": 21.0}[text])
            assert np.isnan(image[0][~valid]).all()


def test_scenes_tell_their_scale(tmp_path):
    image = scene(tmp_path, "a.tif", [10], tags=((2.0,), (1.0,)))

    def told(text: str):
        return open_scenes([image], SceneOptions(scale=(text,))).to_json()

    assert told("2,1") == told("file")
    assert told("2,1") != told("2")
    assert told("0.0000275,-0.2") == told("landsat-c2-sr")
