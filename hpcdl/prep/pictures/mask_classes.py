"""Mask pictures as dense class indices, by the values or colours of their pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcdl.errors import FailedError
from hpcdl.prep.pictures.reading import read_picture
from hpcdl.raster.legend import IGNORE_INDEX

Array = npt.NDArray[Any]
Color = tuple[int, int, int]

_UNKNOWN = -1


@dataclass(frozen=True)
class MaskClass:
    """One class: its code in the manifest, name, colour, and the pixel values that it gathers (0xRRGGBB where by colour)."""

    code: int
    name: str
    color: Color
    values: tuple[int, ...]


@dataclass(frozen=True)
class MaskClasses:
    """The classes of a data set; a class's place is its dense index.

    Attributes:
        by_color: masks are matched by colour, not by value.
        threshold: masks are cut here instead: class 1 from this value on.
        ignored: values that become 255.
        ignore_unknown: values of no class become 255, too.
    """

    classes: tuple[MaskClass, ...]
    by_color: bool = False
    threshold: int | None = None
    ignored: frozenset[int] = frozenset()
    ignore_unknown: bool = False

    def indices(self, values_HW: Array, where: str) -> npt.NDArray[np.uint8]:
        """Dense class indices of a mask's values (`mask_values`), 255 for those to ignore.

        Raises:
            FailedError: a value that is of no class and not ignored; names it and how often it occurs.
        """
        if self.threshold is not None:
            return (values_HW >= self.threshold).astype(np.uint8)
        table = {value: index for index, entry in enumerate(self.classes) for value in entry.values}
        table |= dict.fromkeys(self.ignored, IGNORE_INDEX)
        keys = np.array(sorted(table), np.int64)
        places = np.minimum(np.searchsorted(keys, values_HW), len(keys) - 1)
        found = np.where(keys[places] == values_HW, np.array([table[key] for key in keys.tolist()])[places], _UNKNOWN)
        if (found == _UNKNOWN).any():
            if not self.ignore_unknown:
                values, numbers = np.unique(values_HW[found == _UNKNOWN], return_counts=True)
                raise FailedError(self.refusal(where, dict(zip(values.tolist(), numbers.tolist(), strict=True))))
            found[found == _UNKNOWN] = IGNORE_INDEX
        return found.astype(np.uint8)

    def refusal(self, where: str, unknown: Mapping[int, int]) -> str:
        """What to say of values that are of no class."""
        listed = ", ".join(f"{self.show(value)} ({number} pixels)" for value, number in sorted(unknown.items())[:5])
        more = f" and {len(unknown) - 5} more values" if len(unknown) > 5 else ""
        first = self.show(min(unknown))
        return (
            f"{where}: masks hold {'the colours' if self.by_color else 'the values'} {listed}{more}, which are no class; name "
            f"them with --classes {first}:NAME, or leave them out with --ignore {first} or --unknown ignore"
        )

    def show(self, value: int) -> str:
        """A value as the user writes it."""
        return f"#{value:06x}" if self.by_color else str(value)

    def rules(self) -> list[Any]:
        """What else decides the indices, for a digest."""
        return [self.by_color, self.threshold, sorted(self.ignored), self.ignore_unknown]

    def to_json(self) -> list[dict[str, Any]]:
        """The manifest's `classes`; `from` is there for classes that gather other values than their own code."""
        entries = []
        for index, entry in enumerate(self.classes):
            own = {"index": index, "code": entry.code, "name": entry.name, "color": list(entry.color)}
            plain = self.by_color or self.threshold is not None or entry.values == (entry.code,)
            entries.append(own if plain else {**own, "from": list(entry.values)})
        return entries


def read_mask(path: Path, by_color: bool) -> Array:
    """A mask's pixels, without alpha: three channels of colours, also of a palette; or as stored, palettes as their indices.

    Raises:
        FailedError: as `read_picture` does.
    """
    if by_color:
        return read_picture(path, "rgb")
    mask_CHW = read_picture(path, "values")
    return mask_CHW[: 3 if len(mask_CHW) in (3, 4) else 1]


def mask_values(mask_CHW: Array, by_color: bool, where: str) -> npt.NDArray[np.int64]:
    """One number a pixel, H × W: its value, or its colour as 0xRRGGBB.

    Raises:
        FailedError: a coloured mask where values are wanted, or 16-bit colours.
    """
    if not by_color:
        if is_colored(mask_CHW):
            raise FailedError(f"{where}: is coloured; match it by colour with --classes '#RRGGBB:NAME'")
        return np.asarray(mask_CHW[0], np.int64)
    if mask_CHW.dtype != np.uint8:
        raise FailedError(f"{where}: has 16-bit colours; masks are matched by 8-bit colours")
    red, green, blue = (mask_CHW if len(mask_CHW) == 3 else np.repeat(mask_CHW, 3, axis=0)).astype(np.int64)
    return np.asarray((red << 16) | (green << 8) | blue)


def is_colored(mask_CHW: Array) -> bool:
    """Whether any pixel is not gray."""
    return len(mask_CHW) == 3 and not ((mask_CHW[0] == mask_CHW[1]).all() and (mask_CHW[0] == mask_CHW[2]).all())
