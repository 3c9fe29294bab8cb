from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import Affine

from hpcdl.errors import FailedError
from hpcdl.prep.pictures.reading import Form, picture_form, read_picture, read_windows
from hpcdl.prep.pictures.resizing import fit_of, resize_picture
from tests.generators import UTM, image_affine, truncate, write_raster

DRAW = np.random.default_rng(0)
GRAY = DRAW.integers(0, 256, (5, 7), np.uint8)
RGB = DRAW.integers(0, 256, (5, 7, 3), np.uint8)
RGBA = DRAW.integers(0, 256, (5, 7, 4), np.uint8)
DEEP = DRAW.integers(0, 65536, (5, 7), np.uint16)


def picture_size(path: Path) -> tuple[int, int]:
    form = picture_form(path, "values")
    return form.height, form.width


def save(path, image, **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def palette_image():
    image = Image.fromarray((GRAY % 4).astype(np.uint8), mode=None).convert("P")
    indices = Image.frombytes("P", (7, 5), (GRAY % 4).tobytes())
    indices.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert image.mode == "P"
    return indices


@pytest.mark.parametrize(
    ("pixels", "mode", "wanted"),
    [
        (GRAY, None, GRAY[None]),
        (GRAY, "rgb", np.stack([GRAY] * 3)),
        (GRAY, "rgba", np.stack([GRAY] * 3 + [np.full_like(GRAY, 255)])),
        (RGB, None, RGB.transpose(2, 0, 1)),
        (RGB, "gray", np.asarray(Image.fromarray(RGB).convert("L"))[None]),
        (RGBA, "keep", RGBA.transpose(2, 0, 1)),
        (RGBA, "rgb", RGBA.transpose(2, 0, 1)[:3]),
        (RGBA[..., :2], "keep", RGBA[..., :2].transpose(2, 0, 1)),
        (RGBA[..., :2], "gray", RGBA[..., 0][None]),
        (DEEP, None, DEEP[None]),
        (DEEP, "rgb", np.stack([DEEP] * 3)),
        (GRAY > 100, None, np.where(GRAY > 100, 255, 0)[None]),
    ],
)
def test_png_modes(tmp_path, pixels, mode, wanted):
    path = save(tmp_path / "a b ü.png", pixels)
    found = read_picture(path, mode)
    np.testing.assert_array_equal(found, wanted)
    assert picture_form(path, mode) == Form(*found.shape, str(found.dtype))
    assert picture_size(path) == (5, 7)
    assert found.flags.c_contiguous


def test_palettes_become_colours_or_stay_indices(tmp_path):
    path = save(tmp_path / "p.png", palette_image())
    np.testing.assert_array_equal(read_picture(path, "values"), (GRAY % 4)[None])
    table = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    np.testing.assert_array_equal(read_picture(path), table[GRAY % 4].transpose(2, 0, 1))
    clear = save(tmp_path / "t.png", palette_image(), transparency=0)
    found = read_picture(clear)
    assert found.shape == (4, 5, 7)
    np.testing.assert_array_equal(found[3] == 0, GRAY % 4 == 0)
    assert picture_form(clear).channels == 4
    assert picture_form(clear, "values").channels == 1


def test_a_transparent_gray_or_colour_is_alpha(tmp_path):
    path = save(tmp_path / "l.png", GRAY, transparency=int(GRAY[0, 0]))
    assert picture_form(path).channels == 2
    clear = GRAY[0, 0]
    np.testing.assert_array_equal(read_picture(path)[1] == 0, clear == GRAY)
    path = save(tmp_path / "rgb.png", RGB, transparency=tuple(RGB[0, 0].tolist()))
    assert read_picture(path)[3, 0, 0] == 0
    assert picture_form(path, "rgb").channels == 3


def test_cmyk_and_ycbcr_jpegs_become_rgb(tmp_path):
    flat = Image.new("RGB", (16, 8), (200, 30, 60))
    path = save(tmp_path / "cmyk.jpg", flat.convert("CMYK"), quality=100)
    assert picture_form(path) == Form(3, 8, 16, "uint8")
    assert np.abs(read_picture(path)[:, 4, 8].astype(int) - (200, 30, 60)).max() < 8


@pytest.mark.parametrize("suffix", ["gif", "webp", "bmp", "ppm", "tif", "jp2"])
def test_other_formats(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"x.{suffix}", Image.new("RGB", (9, 6), (10, 200, 30)), **options)
    found = read_picture(path, "rgb")
    assert found.shape == (3, 6, 9)
    assert tuple(found[:, 0, 0]) == (10, 200, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_pictures_are_turned_upright(tmp_path, orientation, suffix):
    block = np.zeros((16, 24), np.uint8)
    block[:8, :8] = 255  # the top left corner as stored
    exif = Image.Exif()
    exif[274] = orientation
    path = save(tmp_path / f"o.{suffix}", block, exif=exif)
    found = read_picture(path)[0]
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert found.shape == ((24, 16) if orientation >= 5 else (16, 24))
    assert picture_size(path) == found.shape
    assert found[corner[orientation]] > 200
    assert (found > 128).sum() == 64


def test_sixteen_bit_colours_are_not_cut(tmp_path):
    deep = DRAW.integers(0, 65536, (3, 5, 7), np.uint16)
    for driver, name, more in (("PNG", "deep.png", {}), ("GTiff", "deep.tif", {"photometric": "rgb"})):
        profile = {"driver": driver, "count": 3, "height": 5, "width": 7, "dtype": "uint16", **more}
        with (
            pytest.warns(rasterio.errors.NotGeoreferencedWarning),
            rasterio.open(tmp_path / name, "w", **profile) as dataset,
        ):
            dataset.write(deep)
        np.testing.assert_array_equal(read_picture(tmp_path / name), deep)
        assert picture_form(tmp_path / name) == Form(3, 5, 7, "uint16")
        gray = read_picture(tmp_path / name, "gray")[0]
        np.testing.assert_allclose(gray, np.tensordot([0.299, 0.587, 0.114], deep, 1), atol=2)


@pytest.mark.parametrize("bands", [1, 2, 4, 7])
def test_bands_of_a_geotiff_are_kept(tmp_path, bands):
    pixels = DRAW.integers(0, 256, (bands, 20, 30), np.uint8)
    path = write_raster(tmp_path / "b.tif", pixels, image_affine(), UTM)
    np.testing.assert_array_equal(read_picture(path), pixels)
    np.testing.assert_array_equal(read_windows(path, [(3, 4, 10, 20)])[0], pixels[:, 3:13, 4:24])
    assert picture_form(path) == Form(bands, 20, 30, "uint8")
    if bands in (2, 7):
        with pytest.raises(FailedError, match=rf"b\.tif: has {bands} bands, which do not make rgb"):
            picture_form(path, "rgb")


def test_a_window_of_a_png(tmp_path):
    path = save(tmp_path / "w.png", RGB)
    np.testing.assert_array_equal(read_windows(path, [(1, 2, 3, 4)])[0], RGB.transpose(2, 0, 1)[:, 1:4, 2:6])


def test_transparent_pixels_get_the_colour_asked_for(tmp_path):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0] = (10, 20, 30, 0)
    pixels[1] = (100, 100, 100, 255)
    path = save(tmp_path / "t.png", pixels)
    assert read_picture(path, "rgb")[:, 0, 0].tolist() == [10, 20, 30]
    assert read_picture(path, "rgb", alpha="white")[:, 0, 0].tolist() == [255] * 3
    assert read_picture(path, "rgb", alpha="black")[:, 0, 0].tolist() == [0] * 3
    assert read_picture(path, "gray", alpha="white")[0].tolist() == [[255, 255], [100, 100]]


def test_files_that_are_no_pictures_are_named(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello\r\n" * 20)
    cases = {"empty.png": "is empty", "text.png": "is not a picture", "none.png": "no such file", ".": "not readable"}
    for name, message in cases.items():
        for function in (picture_size, read_picture):
            with pytest.raises(FailedError, match=message) as error:
                function(tmp_path / name)
            assert str(tmp_path / name) in str(error.value)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "bmp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path, suffix, share):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    path = save(tmp_path / f"x.{suffix}", noise)
    truncate(path, share)
    with pytest.raises(FailedError, match=rf"x\.{suffix}: (not readable|is not a picture)"):
        read_picture(path, "rgb")


def test_a_damaged_geotiff_is_refused(tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (4, 64, 64), np.uint8)
    path = write_raster(tmp_path / "g.tif", noise, Affine(1, 0, 5, 0, -1, 9), UTM)
    truncate(path, 0.6)
    with pytest.raises(FailedError, match=r"g\.tif: not readable"):
        read_picture(path)


def test_pages_and_floats_are_refused(tmp_path):
    pages = save(tmp_path / "pages.tif", GRAY, save_all=True, append_images=[Image.fromarray(GRAY)])
    with pytest.raises(FailedError, match=r"pages\.tif: is a TIFF of 2 pages"):
        picture_size(pages)
    for name, pixels in (("f.tif", GRAY.astype(np.float32)), ("i.tif", GRAY.astype(np.int32) - 300)):
        with pytest.raises(FailedError, match=rf"{name[0]}\.tif: .*(mode 'F'|0 to 65535)"):
            read_picture(save(tmp_path / name, pixels))
    geo = write_raster(tmp_path / "geo.tif", GRAY[None].astype(np.float32), image_affine(), UTM)
    with pytest.raises(FailedError, match=r"geo\.tif: pixel type float32"):
        picture_form(geo)


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(FailedError, match="modes: keep, values, gray, rgb, rgba"):
        read_picture(save(tmp_path / "a.png", GRAY), "hsv")


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_stretching_cropping_and_padding(dtype):
    picture = np.arange(2 * 4 * 8, dtype=dtype).reshape(2, 4, 8)
    np.testing.assert_array_equal(resize_picture(picture, 4, 8), picture)
    assert resize_picture(picture, 6, 6).shape == (2, 6, 6)
    np.testing.assert_array_equal(resize_picture(picture, 4, 4, "crop"), picture[:, :, 2:6])
    padded = resize_picture(picture, 8, 8, "pad", fill=9)
    np.testing.assert_array_equal(padded[:, 2:6], picture)
    assert (padded[:, :2] == 9).all()
    assert padded.dtype == np.dtype(dtype)
    fit = fit_of(4, 8, 8, 8, "pad")
    assert fit.inside(8, 8) == (slice(2, 6), slice(0, 8))
    big = resize_picture(picture, 8, 16, "stretch", "nearest")
    np.testing.assert_array_equal(big, picture.repeat(2, 1).repeat(2, 2))


def test_shrinking_is_antialiased():
    checkers = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[None]
    for how in ("bilinear", "bicubic"):
        small = resize_picture(checkers, 8, 8, "stretch", how)
        assert np.abs(small.astype(int) - 127).max() <= 2
    deep = resize_picture(checkers.astype(np.uint16) * 257, 8, 8, "stretch", "bicubic")
    assert np.abs(deep.astype(int) - 32767).max() <= 600


@pytest.mark.parametrize(("height", "width"), [(1, 500), (500, 1), (3, 7)])
def test_extreme_proportions(height, width):
    picture = np.full((3, height, width), 7, np.uint8)
    for how in ("stretch", "crop", "pad"):
        found = resize_picture(picture, 32, 32, how)
        assert found.shape == (3, 32, 32)
        assert (found == 7).any()
        assert how == "pad" or (found == 7).all()
