"""Read the parts of pictures that samples of pairs need; low resolution is made here, and parts without data are found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep.pictures.pair_samples import Domain, Part, Picture, with_partners
from hpcdl.prep.pictures.reading import Alpha, read_windows
from hpcdl.prep.pictures.resizing import How, fit_of, resize_picture

Array = npt.NDArray[Any]

# Low resolution pixels around a patch that its bicubic filter (two pixels to each side) may look at.
_MARGIN = 4
_MOST_AT_ONCE = 256


@dataclass(frozen=True)
class Reading:
    """How parts are read.

    Attributes:
        mode, alpha: as for `read_picture`.
        size: height and width that whole pictures are resized to; None leaves parts as they are.
        resize: how they come to it.
        factor: how many times smaller low resolution is made, None where none is made.
    """

    mode: str
    alpha: Alpha
    size: tuple[int, int] | None
    resize: How
    factor: int | None

    def fill(self, path: Path, parts: Sequence[Part], numbers: Sequence[int], into: Array, small: Array | None) -> None:
        """Fill the rows `numbers` of `into` with parts of one picture, and those of `small` with their low resolution.

        Raises:
            FailedError: the picture is damaged, or another one than before.
        """
        scale = self.factor or 1
        boxes = [part.box if small is None else _with_margin(part, _MARGIN * scale) for part in parts]
        windows = read_windows(path, boxes, self.mode, self.alpha)
        for part, box, number, pixels_CHW in zip(parts, boxes, numbers, windows, strict=True):
            if pixels_CHW.shape[1:] != box[2:] or len(pixels_CHW) != into.shape[1]:
                raise FailedError(f"{path}: has changed since the plan was made; run the command again")
            if self.size is not None:
                into[number] = resize_picture(pixels_CHW, *self.size, self.resize)
                continue
            row, col, height, width = part.box[0] - box[0], part.box[1] - box[1], *part.box[2:]
            into[number] = pixels_CHW[:, row : row + height, col : col + width]
            if small is not None:
                small_CHW = resize_picture(pixels_CHW, box[2] // scale, box[3] // scale, "stretch", "bicubic")
                row, col = row // scale, col // scale
                small[number] = small_CHW[:, row : row + height // scale, col : col + width // scale]

    def inside(self, pixels_CHW: Array, part: Part) -> Array:
        """The pixels of a sample that are data; what "pad" puts around is not."""
        if self.size is None:
            return pixels_CHW
        return pixels_CHW[:, *fit_of(part.box[2], part.box[3], *self.size, self.resize).inside(*self.size)]


def _with_margin(part: Part, margin: int) -> tuple[int, int, int, int]:
    """A part's box with what a filter looks at around it, within the part's area."""
    row, col, height, width = part.box
    row0, col0 = max(row - margin, part.area[0]), max(col - margin, part.area[1])
    row1, col1 = min(row + height + margin, part.area[2]), min(col + width + margin, part.area[3])
    return row0, col0, row1 - row0, col1 - col0


def leave_out_blank(
    domains: Sequence[Domain], seconds: Mapping[str, Picture | None], scale: int, take_whole: bool, settings: Any
) -> None:
    """Take out the parts without enough data; those of a pair when either has not enough.

    Args:
        domains: changed in place.
        seconds: as for `with_partners`, empty for domains without pairs; so are the next two.
        scale: see there.
        take_whole: see there.
        settings: of pairs, with `min_valid`.

    Raises:
        UsageError: a picture is damaged.
    """
    try:
        for domain in domains:
            parts = [part for members in domain.parts.values() for part in members]
            blank = _blank_parts(parts, settings)
            items = with_partners(domain, seconds, scale, take_whole)[0] if seconds else {}
            partners = {second: first for members in items.values() for first, second in members if second is not None}
            domain.leave_out(blank | {partners[second] for second in _blank_parts(partners, settings)})
    except FailedError as error:
        raise UsageError(f"{error}; mend it, or leave min_valid at 0") from None


def _blank_parts(parts: Iterable[Part], settings: Any) -> set[Part]:
    """The parts of which a smaller share than `min_valid` has data: where all channels are 0 there is none."""
    by_path: dict[str, list[Part]] = {}
    for part in dict.fromkeys(parts):
        by_path.setdefault(part.path, []).append(part)
    blank: set[Part] = set()
    for path, own in by_path.items():
        # Not all at once: a scene may be larger than the memory.
        for start in range(0, len(own), _MOST_AT_ONCE):
            some = own[start : start + _MOST_AT_ONCE]
            windows = read_windows(Path(path), [part.box for part in some], settings.mode, settings.alpha)
            shares = [(pixels_CHW != 0).any(axis=0).mean() for pixels_CHW in windows]
            blank |= {part for part, share in zip(some, shares, strict=True) if share < settings.min_valid}
    return blank
