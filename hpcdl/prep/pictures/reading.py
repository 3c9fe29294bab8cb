"""Read one picture file of any common format as an array C × H × W of uint8 or uint16, upright.

Pillow decodes; GeoTIFF, TIFF with bands that are no colours, and 16-bit colour (which Pillow would cut to 8 bits) are
read with rasterio, band by band. Of an animation the first frame is taken; a TIFF of several pages is refused.

Modes: "keep" (or None) leaves gray, gray + alpha, RGB, RGB + alpha or bands as the file has them (palettes become colours),
"values" does so too but leaves palette indices, as masks need them; "gray", "rgb" and "rgba" convert.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image, UnidentifiedImageError
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.windows import Window

from hpcdl.errors import FailedError

Array = npt.NDArray[Any]
Alpha = Literal["drop", "white", "black"]
# Row, column, height and width of a part of a picture.
Box = tuple[int, int, int, int]

MODES = ("keep", "values", "gray", "rgb", "rgba")
# TIFF tags that only a georeferenced file has: pixel scale, tie points, transformation, GeoKeys.
_GEO_TAGS = (33550, 33922, 34264, 34735)
_EXTRA_SAMPLES, _SUBFILE_TYPE, _ORIENTATION = 338, 254, 274
# What EXIF says of a picture that is not upright (Exif 2.32, tag 0x0112), as the turn that makes it so.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What each of Pillow's modes becomes; those that are not here hold no colours (F: floating point).
_BASES = {
    "1": "L", "L": "L", "LA": "LA", "La": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBX": "RGB",
    "RGBA": "RGBA", "RGBa": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB",
    "I": "I", "I;16": "I", "I;16L": "I", "I;16B": "I", "I;16N": "I",
}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """What `read_picture` gives for a file: `dtype` is "uint8" or "uint16"."""

    channels: int
    height: int
    width: int
    dtype: str


def read_picture(path: Path, mode: str | None = None, alpha: Alpha = "drop") -> Array:
    """A picture's pixels, C × H × W, uint8 or uint16, turned upright as its EXIF orientation says.

    Args:
        path: PNG, JPEG, TIFF, BMP, GIF, WebP, PNM, JPEG 2000 or whatever else Pillow reads.
        mode: see the module docstring.
        alpha: what "gray" and "rgb" make of transparent pixels: their stored colour, or white or black behind them.

    Raises:
        FailedError: missing, damaged, no picture, or pixels that the mode cannot be made of; names the file.
    """
    return read_windows(path, [None], mode, alpha)[0]


def read_windows(
    path: Path, windows: Sequence[Box | None], mode: str | None = None, alpha: Alpha = "drop"
) -> list[Array]:
    """Parts of a picture, each (row, column, height, width), None for all of it; otherwise as `read_picture`.

    Of a GeoTIFF only the parts are read; other pictures are decoded once, as a whole.
    """
    with _opened(path) as image:
        if image is None:
            parts, has_alpha = _read_raster(path, windows)
        else:
            pixels_CHW, has_alpha = _read_pillow(image, path, mode)
            parts = [pixels_CHW if box is None else _cut(pixels_CHW, box) for box in windows]
        return [convert_picture(part, has_alpha, mode or "keep", alpha, str(path)) for part in parts]


def _cut(pixels_CHW: Array, box: Box) -> Array:
    row, col, height, width = box
    return pixels_CHW[:, row : row + height, col : col + width]


def picture_form(path: Path, mode: str | None = None) -> Form:
    """What `read_picture` would give, without decoding the pixels.

    Raises:
        FailedError: as for `read_picture`, as far as the head of the file shows it.
    """
    with _opened(path) as image:
        if image is None:
            with rasterio.open(path) as dataset:
                channels, dtype, has_alpha = dataset.count, _raster_dtype(dataset, path), _has_alpha(dataset)
                height, width = dataset.height, dataset.width
        else:
            base = _base(image, path, mode)
            channels, dtype, has_alpha = len(base), "uint16" if base == "I" else "uint8", base[-1] == "A"
            width, height = image.size
            if _orientation(image) >= 5:
                width, height = height, width
    return Form(num_channels(channels, has_alpha, mode or "keep", str(path)), height, width, dtype)


def convert_picture(pixels_CHW: Array, has_alpha: bool, mode: str, alpha: Alpha, where: str) -> Array:
    """Pixels in the channels of a mode; see the module docstring and `read_picture`.

    Args:
        pixels_CHW: uint8 or uint16.
        has_alpha: the last channel is alpha.
        mode: one of MODES.
        alpha: as for `read_picture`.
        where: names the picture in errors.

    Raises:
        FailedError: the mode cannot be made of these channels.
    """
    num_channels(len(pixels_CHW), has_alpha, mode, where)
    if mode in ("keep", "values"):
        return np.ascontiguousarray(pixels_CHW)
    top = np.iinfo(pixels_CHW.dtype).max
    colours, cover = (
        (pixels_CHW[:-1], pixels_CHW[-1:]) if has_alpha else (pixels_CHW, np.full_like(pixels_CHW[:1], top))
    )
    if has_alpha and alpha != "drop" and mode != "rgba":
        behind = np.uint64(top if alpha == "white" else 0)
        mixed = colours.astype(np.uint64) * cover + behind * (top - cover)
        colours = ((mixed + top // 2) // top).astype(pixels_CHW.dtype)
    if mode == "gray":
        if len(colours) == 1:
            return np.ascontiguousarray(colours)
        # ITU-R 601-2 luma in the integers that Pillow uses, for 16 bits as well.
        red, green, blue = colours.astype(np.uint32)
        luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
        return np.asarray(luma[None], pixels_CHW.dtype)
    colours = np.repeat(colours, 3, axis=0) if len(colours) == 1 else colours
    return np.ascontiguousarray(colours) if mode == "rgb" else np.concatenate([colours, cover])


def num_channels(channels: int, has_alpha: bool, mode: str, where: str) -> int:
    """Channels after `convert_picture`, which refuses what this refuses."""
    if mode in ("keep", "values"):
        return channels
    if mode not in MODES:
        raise FailedError(f"{where}: cannot be read as {mode!r}; modes: {', '.join(MODES)}")
    colours = channels - has_alpha
    if colours not in (1, 3):
        raise FailedError(
            f"{where}: has {channels} bands, which do not make {mode}; the mode 'keep' leaves them as they are"
        )
    return {"gray": 1, "rgb": 3, "rgba": 4}[mode]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image | None]:
    """The picture opened by Pillow, None when it is for rasterio; all that goes wrong inside becomes a FailedError."""
    try:
        with warnings.catch_warnings():
            # Large pictures, odd EXIF and missing georeferences are no news here; damage raises.
            warnings.simplefilter("ignore")
            with path.open("rb") as file:
                head = file.read(4)
                is_tiff = head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # + is BigTIFF
                file.seek(0)
                image = None
                try:
                    image = Image.open(file)
                except (UnidentifiedImageError, Image.DecompressionBombError):
                    if not is_tiff:
                        raise
                if image is not None and image.format == "TIFF":
                    _check_pages(image, path)
                yield None if image is None or _is_raster(image) else image
    except FailedError:
        raise
    except FileNotFoundError:
        raise FailedError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        what = "is empty" if path.stat().st_size == 0 else "is not a picture of a known format"
        raise FailedError(f"{path}: {what}; take it out, or convert it to PNG or TIFF") from None
    except Image.DecompressionBombError:
        raise FailedError(
            f"{path}: has too many pixels to decode at once; cut it up, or make it a tiled TIFF"
        ) from None
    except MemoryError:
        raise FailedError(f"{path}: does not fit in memory when decoded; cut it into smaller pictures") from None
    except Exception as error:  # on a damaged file the decoders raise what the damage happens to lead to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FailedError(f"{path}: not readable as a picture (truncated or damaged?): {reason}") from None


def _check_pages(image: Any, path: Path) -> None:
    """Refuse a TIFF of several pages; overviews (1) and masks (4) are no pages of their own."""
    pages = 0
    for number in range(image.n_frames):
        image.seek(number)
        pages += not image.tag_v2.get(_SUBFILE_TYPE, 0) & 5
    image.seek(0)
    if pages > 1:
        raise FailedError(f"{path}: is a TIFF of {pages} pages; split it into one file a page (tiffsplit does)")


def _is_raster(image: Any) -> bool:
    """Whether Pillow would lose something of this file."""
    raw = str(image.tile[0][3]) if image.tile else ""
    if ";16" in raw and image.mode in ("RGB", "RGBA", "CMYK"):
        return True
    if image.format != "TIFF":
        return False
    # An extra sample of type 0 is a band, not alpha: Pillow would drop it.
    return any(tag in image.tag_v2 for tag in _GEO_TAGS) or 0 in image.tag_v2.get(_EXTRA_SAMPLES, ())


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8. Pillow turns TIFF itself; asking a PNG without EXIF at its head would decode it."""
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    value = image.getexif().get(_ORIENTATION, 1)
    return int(value) if value in _TURNS else 1


def _base(image: Image.Image, path: Path, mode: str | None) -> str:
    """The mode to convert to first: "L", "LA", "RGB", "RGBA", "I" (16 bits); "P" for the indices of a palette."""
    if mode == "values" and image.mode in ("P", "PA"):
        return "P"
    if image.mode not in _BASES:
        raise FailedError(
            f"{path}: pixels of Pillow's mode {image.mode!r} are not read; convert the file to 8 or 16 bits a channel"
        )
    base = _BASES[image.mode]
    return base + "A" if base in ("L", "RGB") and "transparency" in image.info and mode != "values" else base


def _read_pillow(image: Image.Image, path: Path, mode: str | None) -> tuple[Array, bool]:
    base, turn = _base(image, path, mode), _orientation(image)
    if base == "I":
        pixels = np.asarray(image)
        if int(pixels.min()) < 0 or int(pixels.max()) > 65535:
            raise FailedError(f"{path}: values from {pixels.min()} to {pixels.max()}; 0 to 65535 fit in 16 bits")
        pixels_HW = pixels.astype(np.uint16)
    elif base == "P":
        pixels_HW = np.asarray(image.getchannel(0) if image.mode == "PA" else image)
    else:
        pixels_HW = np.asarray(image.convert(base))
    pixels_CHW = pixels_HW[None] if pixels_HW.ndim == 2 else pixels_HW.transpose(2, 0, 1)
    if turn in _TURNS:
        pixels_CHW = np.stack([np.asarray(_plane(plane).transpose(_TURNS[turn])) for plane in pixels_CHW])
    return pixels_CHW, base[-1] == "A"


def _plane(plane_HW: Array) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(plane_HW))


def _raster_dtype(dataset: Any, path: Path) -> str:
    dtypes = set(dataset.dtypes)
    if len(dtypes) > 1 or not dtypes <= {"uint8", "uint16"}:
        raise FailedError(
            f"{path}: pixel type {', '.join(sorted(dtypes))}; uint8 and uint16 are read "
            "(gdal_translate -ot UInt16 -scale converts)"
        )
    return str(dataset.dtypes[0])


def _has_alpha(dataset: Any) -> bool:
    return dataset.count in (2, 4) and dataset.colorinterp[-1] == ColorInterp.alpha


def _read_raster(path: Path, windows: Sequence[Box | None]) -> tuple[list[Array], bool]:
    try:
        with rasterio.open(path) as dataset:
            _raster_dtype(dataset, path)
            areas = [None if box is None else Window(box[1], box[0], box[3], box[2]) for box in windows]
            return [dataset.read(window=area) for area in areas], _has_alpha(dataset)
    except RasterioError as error:
        # GDAL tells the cause in the error beneath.
        cause = error.__cause__ or error
        raise OSError(" ".join(str(cause).split())) from None
