"""Overlapping windows through the network, blended row by row: only a band as high as a window is ever in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpcdl.predict.windows import Strip, coverage, starts, taper
from hpcdl.raster.grid import Grid
from hpcdl.raster.scene import Scenes

Floats = npt.NDArray[np.float32]

NO_CLASS = 255
"""Index of a pixel without image data."""


@dataclass(frozen=True)
class Tiling:
    """How a scene is read and cut into windows.

    Attributes:
        fill: what the network knows as "no data", in all bands.
    """

    scenes: Scenes
    grid: Grid
    resampling: str
    window_px: int
    overlap: float
    batch_size: int
    fill: float

    @property
    def tops(self) -> tuple[int, ...]:
        """First pixel row of each row of windows."""
        return starts(self.grid.height, self.window_px, self.overlap)

    @property
    def lefts(self) -> tuple[int, ...]:
        """First pixel column of each window in a row."""
        return starts(self.grid.width, self.window_px, self.overlap)


@dataclass(frozen=True)
class Rows:
    """Finished rows: `indices_HW` uint8 with NO_CLASS where the image has no data; `probabilities_KHW` adds up to 1 there."""

    row: int
    indices_HW: npt.NDArray[np.uint8]
    probabilities_KHW: Floats


class Band:
    """The image in the rows of one row of windows; moving down reads only the rows that are new.

    Attributes:
        image_CHW: float32, exact for all integers of up to 24 bits; `fill` where there are no data or no pixels at all
            (a scene smaller than a window).
        valid_HW: where the image has data.
    """

    def __init__(self, tiling: Tiling) -> None:
        self._tiling, self._top = tiling, 0
        width = max(tiling.grid.width, tiling.window_px)
        self.image_CHW = np.full((tiling.scenes.num_bands, tiling.window_px, width), tiling.fill, np.float32)
        self.valid_HW = np.zeros((tiling.window_px, width), np.bool_)
        self._filled = 0  # rows from the top on that hold the image

    def move(self, top: int) -> None:
        """Show the rows from `top` on; `top` never goes back."""
        tiling, shift = self._tiling, top - self._top
        kept = max(self._filled - shift, 0)
        if shift:
            self.image_CHW[:, :kept] = self.image_CHW[:, shift : shift + kept].copy()
            self.valid_HW[:kept] = self.valid_HW[shift : shift + kept].copy()
        end = min(tiling.window_px, tiling.grid.height - top)
        if end > kept:
            pixels_CHW, valid_HW = tiling.scenes.read(
                tiling.grid, top + kept, 0, end - kept, tiling.grid.width, tiling.resampling
            )
            columns = slice(0, tiling.grid.width)
            self.image_CHW[:, kept:end, columns] = np.where(valid_HW, pixels_CHW, tiling.fill)
            self.valid_HW[kept:end, columns] = valid_HW
        self._top, self._filled = top, end


def predict_strip(
    tiling: Tiling,
    strip: Strip,
    num_classes: int,
    probabilities: Callable[[Floats], Floats],
    advance: Callable[[], None],
) -> Iterator[Rows]:
    """Predict a strip's windows, row by row of them, and yield its pixel rows from top to bottom as they are finished.

    A pixel's probabilities are the mean over the windows that hold it, weighted with windows.taper in both directions.
    Batches never reach over a row of windows, so they, and every rounding in them, are the same for any strips.

    Args:
        tiling, strip: what to compute.
        num_classes: K.
        probabilities: the network: B × C × window × window to B × K × window × window.
        advance: is called after each row of windows.
    """
    window, height = tiling.window_px, tiling.grid.height
    weights = taper(window, tiling.overlap)
    weights_HW = np.outer(weights, weights)
    row_cover, col_cover = (
        coverage(length, firsts, weights)
        for length, firsts in ((height, tiling.tops), (tiling.grid.width, tiling.lefts))
    )
    band = Band(tiling)
    sums_KHW = np.zeros((num_classes, *band.valid_HW.shape), np.float32)
    for number, top in enumerate(strip.tops):
        band.move(top)
        for batch in _batches(band, tiling):
            images = np.stack([band.image_CHW[:, :, left : left + window] for left in batch])
            for left, part_KHW in zip(batch, probabilities(images), strict=True):
                sums_KHW[:, :, left : left + window] += part_KHW * weights_HW
        # Rows above the next row of windows get nothing more: they are finished.
        below = strip.tops[number + 1] if number + 1 < len(strip.tops) else strip.row1
        first = max(top, strip.row0)
        if below > first:
            inside = (slice(first - top, below - top), slice(0, tiling.grid.width))
            cover_HW = np.outer(row_cover[first:below], col_cover)
            yield _finish(first, sums_KHW[:, *inside], band.valid_HW[inside], cover_HW)
        done = below - top
        sums_KHW[:, : window - done] = sums_KHW[:, done:].copy()
        sums_KHW[:, window - done :] = 0
        advance()


def _batches(band: Band, tiling: Tiling) -> Iterator[list[int]]:
    """First columns of the windows that hold any data, `batch_size` at a time."""
    window = tiling.window_px
    lefts = [left for left in tiling.lefts if band.valid_HW[:, left : left + window].any()]
    for start in range(0, len(lefts), tiling.batch_size):
        yield lefts[start : start + tiling.batch_size]


def _finish(row: int, sums_KHW: Floats, valid_HW: npt.NDArray[np.bool_], cover_HW: Floats) -> Rows:
    indices_HW = np.where(valid_HW, sums_KHW.argmax(axis=0).astype(np.uint8), np.uint8(NO_CLASS))
    return Rows(row, indices_HW, sums_KHW / cover_HW)
