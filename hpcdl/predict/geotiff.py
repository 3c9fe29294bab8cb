"""The files that a GIS opens: the class map with its colours and names, and the probabilities of the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from hpcdl.errors import FailedError
from hpcdl.predict.blend import NO_CLASS
from hpcdl.raster.grid import Grid

Pixels = npt.NDArray[Any]
TILE_PX = 256
PROBABILITY_STEP = 0.004
PROBABILITY_NODATA = 255


class RowSink(Protocol):
    """Takes the rows of a raster from top to bottom."""

    def append(self, rows_BHW: Pixels) -> None:
        """The next rows of all bands."""

    def close(self) -> None:
        """All rows were given."""


class ClassCodes:
    """Which code stands for which dense index in a map file.

    Attributes:
        dtype: uint8 when all codes fit, else uint16.
        nodata: the code of a pixel without data: 0, or the highest one that no class has.
    """

    def __init__(self, classes: Sequence[Mapping[str, Any]]) -> None:
        codes = [int(entry["code"]) for entry in classes]
        self.dtype = "uint8" if max(codes) <= 255 else "uint16"
        highest = int(np.iinfo(self.dtype).max)
        self.nodata = next(code for code in (0, *range(highest, 0, -1)) if code not in codes)
        self._codes = np.full(NO_CLASS + 1, self.nodata, self.dtype)
        self._codes[: len(codes)] = codes
        self._indices = np.full(highest + 1, NO_CLASS, np.uint8)
        self._indices[codes] = np.arange(len(codes))

    def encode(self, indices: npt.NDArray[np.uint8]) -> Pixels:
        """Codes of dense indices, any shape."""
        coded: Pixels = self._codes[indices]
        return coded

    def decode(self, codes: Pixels) -> npt.NDArray[np.uint8]:
        """Dense indices of codes, any shape; NO_CLASS for nodata."""
        return self._indices[codes]


def encode_probabilities(probabilities_KHW: npt.NDArray[np.float32], valid_HW: npt.NDArray[np.bool_]) -> Pixels:
    """Steps of 0.004 as uint8, PROBABILITY_NODATA where there are no data."""
    steps = np.rint(probabilities_KHW / PROBABILITY_STEP).clip(0, 250).astype(np.uint8)
    return np.where(valid_HW, steps, np.uint8(PROBABILITY_NODATA))


class GeoTiff:
    """A tiled, compressed GeoTIFF, written from top to bottom in whole rows of tiles."""

    def __init__(self, path: Path, grid: Grid, num_bands: int, dtype: str, nodata: int) -> None:
        """Create it.

        Raises:
            FailedError: the folder cannot be written.
        """
        self.path, self._row, self._width = path, 0, grid.width
        self._waiting: list[Pixels] = []
        try:
            self.dataset = rasterio.open(
                path, "w", driver="GTiff", height=grid.height, width=grid.width, count=num_bands, dtype=dtype,
                crs=grid.crs, transform=grid.affine, nodata=nodata, compress="deflate", tiled=True, blockxsize=TILE_PX,
                blockysize=TILE_PX, interleave="band", bigtiff="if_safer",
            )  # fmt: skip
        except rasterio.errors.RasterioError as error:
            raise FailedError(f"{path}: cannot be written: {error}") from None

    def append(self, rows_BHW: Pixels) -> None:
        """The next rows; they wait until a row of tiles is full, as a tile that is written twice takes space twice."""
        self._waiting.append(rows_BHW)
        if sum(part.shape[1] for part in self._waiting) >= TILE_PX:
            rows_BHW = np.concatenate(self._waiting, axis=1)
            whole = rows_BHW.shape[1] // TILE_PX * TILE_PX
            self._write(rows_BHW[:, :whole])
            self._waiting = [rows_BHW[:, whole:]]

    def close(self) -> None:
        """Write what waits and finish the file."""
        if self._waiting:
            self._write(np.concatenate(self._waiting, axis=1))
        self._waiting = []
        self.dataset.close()

    def _write(self, rows_BHW: Pixels) -> None:
        number = rows_BHW.shape[1]
        if number:
            try:
                self.dataset.write(rows_BHW, window=Window(0, self._row, self._width, number))
            except rasterio.errors.RasterioError as error:
                raise FailedError(f"{self.path}: cannot be written (disk full?): {error}") from None
            self._row += number


def create_map(path: Path, grid: Grid, classes: Sequence[Mapping[str, Any]], tags: Mapping[str, str]) -> GeoTiff:
    """A class map: codes, the classes' colours, and their names (as tags, and beside it where GDAL looks for them)."""
    codes = ClassCodes(classes)
    file = GeoTiff(path, grid, 1, codes.dtype, codes.nodata)
    dataset = file.dataset
    colors = {int(entry["code"]): (*(int(part) for part in entry["color"]), 255) for entry in classes}
    dataset.write_colormap(1, {codes.nodata: (0, 0, 0, 0), **colors})
    dataset.colorinterp = [ColorInterp.palette]
    dataset.set_band_description(1, "class")
    dataset.update_tags(**tags)
    dataset.update_tags(1, **{f"class_{entry['code']}": entry["name"] for entry in classes})
    names = {int(entry["code"]): str(entry["name"]) for entry in classes}
    _write_categories(path, [names.get(code, "") for code in range(max(names) + 1)])
    return file


def create_probabilities(
    path: Path, grid: Grid, classes: Sequence[Mapping[str, Any]], tags: Mapping[str, str]
) -> GeoTiff:
    """Probabilities, one band a class: uint8 with the scale 0.004 written in the file."""
    file = GeoTiff(path, grid, len(classes), "uint8", PROBABILITY_NODATA)
    file.dataset.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (len(classes) - 1)
    file.dataset.scales = [PROBABILITY_STEP] * len(classes)
    file.dataset.update_tags(**tags)
    for band, entry in enumerate(classes, start=1):
        file.dataset.set_band_description(band, f"{entry['code']} {entry['name']}")
    return file


def _write_categories(path: Path, names: Sequence[str]) -> None:
    # GeoTIFF has no place for category names; GDAL and QGIS read them from this file, and rasterio cannot write it.
    body = "".join(f"<Category>{escape(name)}</Category>" for name in names)
    path.with_name(path.name + ".aux.xml").write_text(
        f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{body}</CategoryNames></PAMRasterBand></PAMDataset>\n',
        encoding="utf-8",
    )
