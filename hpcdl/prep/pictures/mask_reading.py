"""A picture and its mask: read together, and brought to one size together."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hpcdl.errors import FailedError
from hpcdl.prep.pictures.mask_classes import MaskClasses, mask_values, read_mask
from hpcdl.prep.pictures.reading import Alpha, read_picture
from hpcdl.prep.pictures.resizing import How, fit_of, resize_picture
from hpcdl.raster.legend import IGNORE_INDEX

Array = npt.NDArray[Any]


def read_pair(
    image_path: Path, mask_path: Path, mode: str, alpha: Alpha, channels: int, classes: MaskClasses
) -> tuple[Array, Array]:
    """A picture, C × H × W, and the dense class indices of its mask, H × W.

    Raises:
        FailedError: one of them is damaged, not as it was when the plan was made, or holds an unknown value.
    """
    image_CHW = read_picture(image_path, mode, alpha)
    values_HW = mask_values(read_mask(mask_path, classes.by_color), classes.by_color, str(mask_path))
    if image_CHW.shape[1:] != values_HW.shape or len(image_CHW) != channels:
        raise FailedError(f"{image_path}: has changed since the plan was made; run the command again")
    return image_CHW, classes.indices(values_HW, str(mask_path))


def fit_pair(
    image_CHW: Array, label_HW: Array, height: int, width: int, how: How | Literal["tile"], top: int, left: int
) -> tuple[Array, Array, tuple[slice, slice]]:
    """Picture and label at the size wanted, and the rows and columns that are no margin; margins are to be ignored.

    Args:
        image_CHW: the picture.
        label_HW: its dense class indices.
        height: rows of the result.
        width: columns of the result.
        how: as for `resize_picture`; "tile" cuts out what is at `top` and `left` and pads it where the picture ends.
        top: first row of the tile.
        left: first column of the tile.
    """
    if how == "tile":
        image_CHW, label_HW = (values[..., top : top + height, left : left + width] for values in (image_CHW, label_HW))
        rows, cols = label_HW.shape
        margin = ((0, height - rows), (0, width - cols))
        label_HW = np.pad(label_HW, margin, constant_values=IGNORE_INDEX)
        return np.pad(image_CHW, ((0, 0), *margin)), label_HW, (slice(0, rows), slice(0, cols))
    inside = fit_of(image_CHW.shape[1], image_CHW.shape[2], height, width, how).inside(height, width)
    image_CHW = resize_picture(image_CHW, height, width, how)
    label_HW = resize_picture(label_HW[None], height, width, how, "nearest", IGNORE_INDEX)[0]
    return image_CHW, label_HW, inside
