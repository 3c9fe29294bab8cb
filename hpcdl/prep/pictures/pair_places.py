"""Where pictures lie: on one map, if they are georeferenced, and in which strip of it each split is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rasterio
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds

from hpcdl.errors import UsageError
from hpcdl.prep.partition import check_fractions
from hpcdl.prep.pictures.reading import Form
from hpcdl.prep.plan import SPLITS

# Row and column of the first pixel and of the one behind the last.
Area = tuple[int, int, int, int]


@dataclass(frozen=True)
class Place:
    """A georeference: coordinate system, and x = a·col + b·row + c, y = d·col + e·row + f.

    Attributes:
        bounds: west, south, east, north in degrees.
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]
    bounds: tuple[float, float, float, float]

    def meets(self, other: Place) -> bool:
        """Whether the pictures show a part of the earth in common; those that only touch do not."""
        west, south, east, north = self.bounds
        # A thousandth of a picture: neighbours' bounds differ by rounding.
        slack_x, slack_y = (east - west) / 1000, (north - south) / 1000
        return (
            west + slack_x < other.bounds[2]
            and other.bounds[0] < east - slack_x
            and south + slack_y < other.bounds[3]
            and other.bounds[1] < north - slack_y
        )


def place_of(path: Path) -> Place | None:
    """The georeference of a GeoTIFF; None for other pictures."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with rasterio.open(path) as dataset:
                if dataset.crs is None or dataset.transform.is_identity:
                    return None
                a, b, c, d, e, f = tuple(dataset.transform)[:6]
                bounds = transform_bounds(dataset.crs, "EPSG:4326", *dataset.bounds)
                return Place(dataset.crs.to_wkt(), (a, b, c, d, e, f), bounds)
    except RasterioError:  # a TIFF that GDAL cannot place is a picture like others
        return None


def tags_of(places: Sequence[Place | None]) -> list[list[str]]:
    """Tags for `joined`: pictures that overlap on the map have one in common."""
    tags: list[list[str]] = [[] for _ in places]
    known = [(number, place) for number, place in enumerate(places) if place is not None]
    for position, (number, place) in enumerate(known):
        for other_number, other in known[position + 1 :]:
            if place.meets(other):
                # ~ sorts behind the other tags, so that a group is not named by the order of the pictures.
                tags[number].append(f"~ map {number}")
                tags[other_number].append(f"~ map {number}")
    return tags


def strips(
    names: Sequence[Path],
    forms: Sequence[Form],
    places: Sequence[Place | None],
    val_fraction: float,
    test_fraction: float,
) -> tuple[str, list[dict[str, Area]]]:
    """The part of each picture that belongs to each split: train first, then val, then test, across the longer side.

    Georeferenced pictures that overlap are cut along the same lines on the map; others at the same shares of their length.

    Returns:
        "columns" or "rows", and of each picture the areas by split; a picture may have no part of a split.

    Raises:
        UsageError: fractions that are no shares, or georeferences that cannot be compared.
    """
    check_fractions(val_fraction, test_fraction)
    by_columns = forms[0].width >= forms[0].height
    shares = [0.0, 1 - val_fraction - test_fraction, 1 - test_fraction, 1.0]
    lengths = [form.width if by_columns else form.height for form in forms]
    known = [place for place in places if place is not None]
    if len(known) == len(places) and any(tags_of(places)):
        cuts = _cuts_on_map(names, known, lengths, shares, by_columns)
    else:
        cuts = [[float(round(length * share)) for share in shares] for length in lengths]
    return "columns" if by_columns else "rows", [
        _areas(form, edges, by_columns) for form, edges in zip(forms, cuts, strict=True)
    ]


def _cuts_on_map(
    names: Sequence[Path], places: Sequence[Place], lengths: Sequence[int], shares: Sequence[float], by_columns: bool
) -> list[list[float]]:
    """Where the lines on the map lie in each picture, in pixels."""
    ends: list[tuple[float, float]] = []
    for name, place, length in zip(names, places, lengths, strict=True):
        a, b, c, d, e, f = place.transform
        if b or d:
            raise UsageError(f"{name}: is rotated on its map; bring it north up (gdalwarp does), or use --split random")
        if place.crs != places[0].crs:
            raise UsageError(
                f"{name}: has another coordinate system than {names[0]}; bring them to one (gdalwarp -t_srs), or use --split "
                "random"
            )
        start, step = (c, a) if by_columns else (f, e)
        ends.append((start, start + step * length))
    # Seen in the first picture's direction: from the left, or from the top.
    forward = ends[0][1] > ends[0][0]
    first, last = (min, max) if forward else (max, min)
    low, high = first(value for pair in ends for value in pair), last(value for pair in ends for value in pair)
    start, step = ends[0][0], (ends[0][1] - ends[0][0]) / lengths[0]
    # On whole pixels of the first picture, so that pictures on its grid lose none.
    lines = [start + round((low + (high - low) * share - start) / step) * step for share in shares]
    return [
        [(line - start) / (end - start) * length for line in lines]
        for (start, end), length in zip(ends, lengths, strict=True)
    ]


def _areas(form: Form, edges: Sequence[float], by_columns: bool) -> dict[str, Area]:
    """The whole pixels between the edges."""
    areas: dict[str, Area] = {}
    for number, split in enumerate(SPLITS):
        low, high = sorted(edges[number : number + 2])
        # Rounding errors of the map must not cost a pixel.
        length = form.width if by_columns else form.height
        start, end = max(math.ceil(low - 1e-3), 0), min(math.floor(high + 1e-3), length)
        if start < end:
            areas[split] = (0, start, form.height, end) if by_columns else (start, 0, end, form.width)
    return areas
