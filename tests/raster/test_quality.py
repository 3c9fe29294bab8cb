"""Quality bands: codes by name, bands that fit no scene, and no cloud in what is interpolated beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from hpcdl.errors import UsageError
from hpcdl.raster.grid import Grid
from hpcdl.raster.quality import load_quality_rule
from hpcdl.raster.scene import SceneOptions, open_scenes
from hpcdl.raster.source import RasterSource
from tests.generators import UTM, image_affine, write_raster

# Each flag of Landsat's QA_PIXEL (USGS LSDS-1619, table 6-2): a code that has it, and one that is nearly it.
LANDSAT = {
    "fill": (0b1, 0b10),
    "dilated_cloud": (0b10, 0b101),
    "cirrus": (0b100, 0b1010),
    "cloud": (0b1000, 0b10100),
    "cloud_shadow": (0b1_0000, 0b10_1000),
    "snow": (0b10_0000, 0b101_0000),
    "clear": (0b100_0000, 0b1010_0000),
    "water": (0b1000_0000, 0b1_0100_0000),
    "cloud_confidence_low": (1 << 8, 3 << 8),
    "cloud_confidence_medium": (2 << 8, 3 << 8),
    "cloud_confidence_high": (3 << 8, 2 << 8),
    "cloud_shadow_confidence_high": (3 << 10, 1 << 10),
    "snow_confidence_high": (3 << 12, 2 << 12),
    "cirrus_confidence_high": (3 << 14, 1 << 14),
}
SCL = (
    "no_data", "saturated", "dark", "cloud_shadow", "vegetation", "bare", "water", "unclassified", "cloud_medium",
    "cloud_high", "cirrus", "snow",
)  # fmt: skip


def left_out(rule_name: str, mask: tuple[str, ...], codes: list[int], dtype: str = "uint16") -> list[bool]:
    return (~load_quality_rule(rule_name, mask).good(np.array(codes, dtype))).tolist()


@pytest.mark.parametrize("flag", LANDSAT)
def test_each_landsat_flag(flag):
    has, has_not = LANDSAT[flag]
    others = 0xFFFF & ~(3 << 8 | 3 << 10 | 3 << 12 | 3 << 14 | has)  # all single bits but its own
    assert left_out("landsat-c2", (flag,), [has, has_not, 0, has | others]) == [True, False, False, True]


def test_all_bundled_flags_are_tested():
    flags = yaml.safe_load(Path("configs/quality/landsat-c2.yaml").read_text())["flags"]
    assert set(flags) == set(LANDSAT)
    flags = yaml.safe_load(Path("configs/quality/sentinel2-scl.yaml").read_text())["flags"]
    assert list(flags) == list(SCL)


@pytest.mark.parametrize("code", range(12))
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_each_scl_code(code, dtype):
    expected = [other == code for other in range(13)]
    assert left_out("sentinel2-scl", (SCL[code],), list(range(13)), dtype) == expected


def test_real_codes_by_the_legends_own_choice():
    # Landsat 8: clear, water, cloud, its shadow, snow, fill; high cirrus (USGS's table of common values).
    codes = [21824, 21952, 22280, 23888, 30048, 1, 54596]
    assert left_out("landsat-c2", (), codes) == [False, False, True, True, False, True, True]
    assert left_out("landsat-c2", ("cloud", "snow"), codes) == [False, False, True, False, True, False, False]
    assert left_out("landsat-c2", ("clear",), codes)[:3] == [True, True, False]
    chosen = [n for n, gone in enumerate(left_out("sentinel2-scl", (), list(range(12)), "uint8")) if gone]
    assert chosen == [0, 1, 3, 8, 9, 10]


def test_an_unknown_flag_is_named_with_those_there_are():
    with pytest.raises(
        UsageError, match=r"no flag 'cloudy'; it has: fill, .*cirrus_confidence_high\. Did you mean 'cl"
    ):
        load_quality_rule("landsat-c2", ("cloud", "cloudy"))
    with pytest.raises(UsageError, match=r"unknown quality 'landsat'; known: landsat-c2, sentinel2-scl"):
        load_quality_rule("landsat")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flags: {a: {bit: 32}}\nmask: [a]", "flag 'a' is"),
        ("flags: {a: {bit: -1}}\nmask: [a]", "flag 'a' is"),
        ("flags: {a: {bit: x}}\nmask: [a]", "flag 'a' is"),
        ("flags: {a: {bits: [1, 3], value: 1}}\nmask: [a]", "flag 'a' is"),
        ("flags: {a: {bits: [1, 2], value: 4}}\nmask: [a]", "flag 'a' is"),
        ("flags: {a: {bits: [], value: 1}}\nmask: [a]", "flag 'a' is"),
        ("flags: {a: {bits: 3, value: 1}}\nmask: [a]", "flag 'a' is"),
        ("flags: {a: {bits: [1, 2], value: x}}\nmask: [a]", "flag 'a' is"),
        ("flags: {a: {bits: [1, 2]}}\nmask: [a]", "flag 'a' is"),
        ("flags: {a: {value: -1}}\nmask: [a]", "flag 'a' is"),
        ("flags: {a: {bit: 1, value: 0}}\nmask: [a]", "flag 'a' is"),
        ("flags: {a: {bit: 1, colour: 3}}\nmask: [a]", "flag 'a' is"),
        ("flags: {a: 3}\nmask: [a]", "flag 'a' is"),
        ("flags: {a: {bit: 3}}", "names no flags to leave out"),
        ("flags: {a: {bit: 3}}\nmask: [b]", "no flag 'b'; it has: a"),
        ("flags: {a: {bit: 3}}\nmask: 3", "mask"),
        ("mask: [a]", "needs 'flags'"),
        ("- 3", "needs 'flags'"),
        ("{", "not readable as YAML"),
    ],
)
def test_faulty_legends_are_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        load_quality_rule(str(path))
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def scene(folder: Path, name: str, value: int, affine=None, size: int = 60) -> str:
    values = np.full((1, size, size), value, "uint16")
    return str(write_raster(folder / name, values, affine or image_affine(), UTM))


def quality(folder: Path, name: str, cloudy: tuple[slice, slice], affine=None, size: int = 60, **extra) -> str:
    codes = np.full((1, size, size), 21824, "uint16")
    codes[0][cloudy] = 22280
    return str(write_raster(folder / name, codes, affine or image_affine(), UTM, **extra))


HALF = (slice(0, 30), slice(None))
NEXT = image_affine(corner=(300_000 + 900, 4_150_000))


def test_clouds_are_left_out_of_their_own_scene(tmp_path):
    images = [scene(tmp_path, "a.tif", 1), scene(tmp_path, "b.tif", 2, NEXT)]
    bands = [
        quality(tmp_path, "qb.tif", (slice(30, 60), slice(None)), NEXT),
        quality(tmp_path, "qa.tif", HALF),
    ]
    scenes = open_scenes(images, SceneOptions(quality=tuple(bands)))
    assert [path.name for path in scenes.quality_paths] == ["qa.tif", "qb.tif"]
    image, valid = scenes.read(scenes.grid, 0, 0, 60, 90)
    assert not valid[:30, :30].any()
    assert not valid[30:, 60:].any()
    assert (image[0, 30:, :60] == 1).all()
    assert (image[0, :30, 30:] == 2).all()


def test_a_band_on_another_grid_belongs_to_no_scene(tmp_path):
    images = (scene(tmp_path, "a.tif", 1),)
    for name, affine, size in (("far", NEXT, 60), ("small", image_affine(), 59), ("coarse", image_affine(60), 30)):
        band = quality(tmp_path, f"{name}.tif", HALF, affine, size)
        with pytest.raises(UsageError, match=rf"{name}\.tif: no scene without a quality band has its grid"):
            open_scenes(images, SceneOptions(quality=(band,)))


def test_each_scene_takes_one_band(tmp_path):
    images = (scene(tmp_path, "a.tif", 1), scene(tmp_path, "b.tif", 2, NEXT))
    first = quality(tmp_path, "qa.tif", HALF)
    with pytest.raises(UsageError, match=r"b\.tif: its scene has no quality band among --quality; give one for each"):
        open_scenes(images, SceneOptions(quality=(first,)))
    second = quality(tmp_path, "qa2.tif", HALF)
    with pytest.raises(UsageError, match=r"qa2\.tif: no scene without a quality band"):
        open_scenes(images, SceneOptions(quality=(first, second)))
    with pytest.raises(UsageError, match=r"qa\.tif: the quality band is given twice"):
        open_scenes(images, SceneOptions(quality=(first, first)))
    with pytest.raises(UsageError, match=r"no such file"):
        open_scenes(images, SceneOptions(quality=(str(tmp_path / "nowhere.tif"),)))
    with pytest.raises(UsageError, match=r"--mask names flags .* --quality"):
        open_scenes(images, SceneOptions(mask=("cloud",)))


def test_bands_that_are_no_codes_are_refused(tmp_path):
    images = (scene(tmp_path, "a.tif", 1),)
    floats = write_raster(tmp_path / "f.tif", np.ones((1, 60, 60), "float32"), image_affine(), UTM)
    two = write_raster(tmp_path / "t.tif", np.ones((2, 60, 60), "uint16"), image_affine(), UTM)
    for path, what in ((floats, r"f\.tif: has 1 band\(s\) of float32"), (two, r"t\.tif: has 2 band\(s\) of uint16")):
        with pytest.raises(UsageError, match=what):
            open_scenes(images, SceneOptions(quality=(str(path),)))


def test_by_folder_two_scenes_on_one_grid_have_a_band_each(tmp_path):
    days = [tmp_path / "may", tmp_path / "june"]
    for value, day in enumerate(days, start=1):
        scene(day, "b1.tif", value)
        scene(day, "b2.tif", value * 10)
        cloudy = HALF if value == 1 else (slice(20, 60), slice(None))
        quality(day, "qa.tif", cloudy)
    patterns = [str(day / "b*.tif") for day in days]
    bands = tuple(str(day / "qa.tif") for day in reversed(days))
    scenes = open_scenes(patterns, SceneOptions(scene_by="folder", quality=bands))
    image, valid = scenes.read(scenes.grid, 0, 0, 60, 60)
    assert (image[:, 30:] == np.array([1, 10])[:, None, None]).all()
    assert (image[:, :20] == np.array([2, 20])[:, None, None]).all()
    assert not valid[20:30].any()
    with pytest.raises(UsageError, match=r"may/b1\.tif: its scene has no quality band"):
        open_scenes(patterns, SceneOptions(scene_by="folder", quality=(bands[0],)))
    elsewhere = quality(tmp_path, "qa.tif", HALF)
    with pytest.raises(UsageError, match=r"qa\.tif: no scene without a quality band lies in its folder on its grid"):
        open_scenes(patterns, SceneOptions(scene_by="folder", quality=(*bands, elsewhere)))


@pytest.mark.parametrize("resampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("pixel_m", [30.0, 29.0, 97.0])
def test_clouds_never_bleed_into_their_neighbours(tmp_path, resampling, pixel_m):
    random = np.random.default_rng(0)
    codes = np.where(random.random((90, 90)) < 0.15, 22280, 21824).astype("uint16")
    codes[40:60, 20:50] = 22280
    # Clouds are bright; were they mixed in, clear pixels would not be 1000.
    values = np.where(codes == 22280, 60_000, 1000).astype("uint16")
    write_raster(tmp_path / "a.tif", values[None], image_affine(), UTM)
    write_raster(tmp_path / "qa.tif", codes[None], image_affine(), UTM, nodata=1)
    options = SceneOptions(quality=(str(tmp_path / "qa.tif"),))
    scenes = open_scenes([str(tmp_path / "a.tif")], options)
    count = int(2600 / pixel_m)
    grid = Grid(scenes.grid.crs, tuple(image_affine(pixel_m, (300_011.0, 4_149_993.0)))[:6], count, count)
    image, valid = scenes.read(grid, 0, 0, count, count, resampling)
    assert 0.4 < valid.mean() < 1
    assert set(np.unique(image[0][valid])) == {1000}
    assert set(np.unique(image[0][~valid])) == {0}


def test_methods_that_would_mix_clouds_in_are_refused(tmp_path):
    options = SceneOptions(quality=(quality(tmp_path, "qa.tif", HALF),))
    scenes = open_scenes([scene(tmp_path, "a.tif", 1)], options)
    grid = Grid(scenes.grid.crs, tuple(image_affine(29, (300_004.0, 4_149_996.0)))[:6], 50, 50)
    for name in ("cubic", "lanczos", "average"):
        with pytest.raises(UsageError, match=rf"'{name}' would mix what .*qa\.tif leaves out.*nearest or bilinear"):
            scenes.read(grid, 0, 0, 50, 50, name)


@pytest.mark.parametrize("resampling", ["nearest", "bilinear"])
def test_a_pixel_is_cloudy_when_its_centre_lies_in_a_cloud(tmp_path, resampling):
    cloudy = (slice(20, 31), slice(13, 40))
    scenes = open_scenes(
        [scene(tmp_path, "a.tif", 1)], SceneOptions(quality=(quality(tmp_path, "qa.tif", cloudy),), mask=("cloud",))
    )
    grid = Grid(scenes.grid.crs, tuple(image_affine(10, (300_001.0, 4_149_999.0)))[:6], 170, 170)
    _, valid = scenes.read(grid, 0, 0, 170, 170, resampling)
    centres = ((np.arange(170) + 0.5) * 10 + 1) // 30
    clouds = np.zeros((60, 60), bool)
    clouds[cloudy] = True
    np.testing.assert_array_equal(valid, ~clouds[np.ix_(centres.astype(int), centres.astype(int))])


def test_methods_agree_on_what_is_cloudy_where_the_quality_band_has_no_data(tmp_path):
    """QA_PIXEL's own nodata value says nothing of a pixel that the mask does not ask for."""
    codes = np.full((1, 60, 60), 21824, "uint16")
    codes[0, 10:20, 10:20] = 1
    write_raster(tmp_path / "qa.tif", codes, image_affine(), UTM, nodata=1)
    scenes = open_scenes(
        [scene(tmp_path, "a.tif", 1)], SceneOptions(quality=(str(tmp_path / "qa.tif"),), mask=("cloud",))
    )
    grid = Grid(scenes.grid.crs, tuple(image_affine(29, (300_004.0, 4_149_996.0)))[:6], 60, 60)
    masks = {name: scenes.read(grid, 0, 0, 60, 60, name)[1] for name in ("nearest", "bilinear")}
    for mask in masks.values():
        np.testing.assert_array_equal(mask, masks["nearest"])


def test_the_quality_band_adds_to_the_images_own_nodata(tmp_path):
    values = np.full((1, 60, 60), 7, "uint16")
    values[0, :, :10] = 0
    write_raster(tmp_path / "a.tif", values, image_affine(), UTM, nodata=0)
    options = SceneOptions(quality=(quality(tmp_path, "qa.tif", HALF),))
    scenes = open_scenes([str(tmp_path / "a.tif")], options)
    _, valid = scenes.read(scenes.grid, 0, 0, 60, 60)
    assert valid[30:, 10:].all()
    assert valid.sum() == 30 * 50


def test_scenes_tell_what_their_masks_are(tmp_path):
    """A plan follows from this: other flags make another data set, another file name does not."""
    image, band = scene(tmp_path, "a.tif", 1), quality(tmp_path, "qa.tif", HALF)
    moved = quality(tmp_path / "x", "other.tif", HALF)

    def told(**options):
        return open_scenes([image], SceneOptions(**options)).to_json()

    assert told(quality=(band,)) == told(quality=(moved,))
    assert told(quality=(band,)) != told()
    assert told(quality=(band,)) != told(quality=(band,), mask=("cloud",))


def test_a_source_without_quality_has_no_rule(tmp_path):
    source = RasterSource(Path(scene(tmp_path, "a.tif", 1)))
    assert source.quality_rule is None
    assert source.quality_path is None
