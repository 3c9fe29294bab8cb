"""Bring a picture to a size: an array C × H × W stretched, cropped or padded, with antialiased filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from hpcdl.errors import UsageError
from hpcdl.prep.pictures.reading import Form

Array = npt.NDArray[Any]
How = Literal["stretch", "crop", "pad"]
Resampling = Literal["bilinear", "bicubic", "nearest"]

_RESAMPLINGS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class Fit:
    """Where a resized picture lies on its canvas: size before cutting, and the place of its top left pixel (may be < 0)."""

    height: int
    width: int
    top: int
    left: int

    def inside(self, height: int, width: int) -> tuple[slice, slice]:
        """The rows and columns of a canvas of this size that the picture covers."""
        rows = slice(max(self.top, 0), min(self.top + self.height, height))
        return rows, slice(max(self.left, 0), min(self.left + self.width, width))


def resize_picture(
    pixels_CHW: Array,
    height: int,
    width: int,
    how: How = "stretch",
    resampling: Resampling = "bilinear",
    fill: int = 0,
) -> Array:
    """The picture on a canvas of that size; filters are antialiased, so shrinking blurs as it should.

    Args:
        pixels_CHW: uint8 or uint16.
        height: rows of the result.
        width: columns of the result.
        how: "stretch" ignores the proportions, "crop" fills the canvas and cuts the long sides, "pad" fits the picture in.
        resampling: "nearest" for class indices.
        fill: what "pad" puts around.
    """
    fit = fit_of(pixels_CHW.shape[1], pixels_CHW.shape[2], height, width, how)
    if (fit.height, fit.width) == pixels_CHW.shape[1:]:
        resized_CHW = pixels_CHW
    else:
        resized_CHW = np.stack([_resize(plane, fit.height, fit.width, resampling) for plane in pixels_CHW])
    if (fit.height, fit.width) == (height, width):
        return np.ascontiguousarray(resized_CHW)
    canvas_CHW = np.full((len(pixels_CHW), height, width), fill, pixels_CHW.dtype)
    rows, cols = fit.inside(height, width)
    top, left = max(-fit.top, 0), max(-fit.left, 0)
    part = resized_CHW[:, top : top + rows.stop - rows.start, left : left + cols.stop - cols.start]
    canvas_CHW[:, rows, cols] = part
    return canvas_CHW


def fit_of(from_height: int, from_width: int, height: int, width: int, how: How) -> Fit:
    """How a picture of one size comes onto a canvas of another; see `resize_picture`."""
    if how == "stretch":
        return Fit(height, width, 0, 0)
    choose = max if how == "crop" else min
    scale = choose(height / from_height, width / from_width)
    # The side that decides the scale gets its size without rounding errors.
    inner_height = height if scale == height / from_height else max(1, round(from_height * scale))
    inner_width = width if scale == width / from_width else max(1, round(from_width * scale))
    return Fit(inner_height, inner_width, (height - inner_height) // 2, (width - inner_width) // 2)


def _resize(plane_HW: Array, height: int, width: int, resampling: Resampling) -> Array:
    if plane_HW.dtype == np.uint8:
        return np.asarray(Image.fromarray(plane_HW).resize((width, height), _RESAMPLINGS[resampling]))
    # Pillow filters 16-bit planes in floating point only; nearest copies, and 16 bits fit exactly.
    image = Image.fromarray(plane_HW.astype(np.float32)).resize((width, height), _RESAMPLINGS[resampling])
    return np.asarray(np.clip(np.rint(np.asarray(image)), 0, 65535), plane_HW.dtype)


def target_size(size_px: Sequence[int]) -> tuple[int, int] | None:
    """Height and width of a setting `size_px`: one number, or height and width; None when it is empty.

    Raises:
        UsageError: more than two numbers, or one below 1.
    """
    if not size_px:
        return None
    if len(size_px) > 2 or min(size_px) < 1:
        raise UsageError(
            f"size_px is {', '.join(map(str, size_px))}; give one number, or height and width, of at least 1"
        )
    return size_px[0], size_px[-1]


def common_form(
    forms: Mapping[str, Form],
    size: tuple[int, int] | None,
    advice: str = "give the size they shall have with --size-px",
) -> Form:
    """The form that all pictures come to: their own where they are alike, resized to `size` if given.

    Raises:
        UsageError: they differ in channels or pixel type, or in size while no size is given; names two of them.
    """
    (first, form), *others = forms.items()
    for name, other in others:
        if (other.channels, other.dtype) != (form.channels, form.dtype):
            raise UsageError(
                f"{name}: has {other.channels} channel(s) of {other.dtype}, but {first} has {form.channels} of {form.dtype}; "
                + (
                    "give --mode gray or --mode rgb"
                    if other.dtype == form.dtype
                    else "convert the files to one pixel type"
                )
            )
        if size is None and (other.height, other.width) != (form.height, form.width):
            raise UsageError(
                f"{name}: is {other.height} × {other.width} pixels, but {first} is {form.height} × {form.width}; "
                f"{advice}"
            )
    return form if size is None else replace(form, height=size[0], width=size[1])
