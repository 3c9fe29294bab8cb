"""Which parts of which pictures make the samples of pairs: whole pictures or patches, split by picture or by strip."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hpcdl.errors import UsageError
from hpcdl.prep.partition import Indices, by_group, in_order
from hpcdl.prep.pictures.files import warn
from hpcdl.prep.pictures.pair_places import Area, Place, strips
from hpcdl.prep.pictures.reading import Form
from hpcdl.prep.pictures.tasks import check_whole, joined
from hpcdl.prep.pictures.tiles import tiles_of
from hpcdl.prep.plan import SPLITS


@dataclass(frozen=True)
class Picture:
    """A picture of one domain; `tags` as for `joined`."""

    path: Path
    form: Form
    digest: str
    place: Place | None
    tags: tuple[str, ...] = ()


class Part(NamedTuple):
    """A patch, and the area of its split in the picture, beyond which nothing may be looked at; `area` as `box`: all of it."""

    path: str
    box: tuple[int, int, int, int]  # row, column, height, width
    area: Area


# The parts of both fields; the second one is None where it is made from the first.
Sample = tuple[Part, Part | None]


@dataclass
class Domain:
    """The parts of one domain by split, and how many were left out, as too small or without data."""

    parts: dict[str, list[Part]] = field(default_factory=dict)
    contents: dict[str, list[str]] = field(default_factory=dict)
    num_small: dict[str, int] = field(default_factory=dict)
    num_blank: dict[str, int] = field(default_factory=dict)

    def leave_out(self, blank: Collection[Part]) -> None:
        """Take parts out and count them."""
        for split, parts in self.parts.items():
            kept = [number for number, part in enumerate(parts) if part not in blank]
            if len(kept) < len(parts):
                self.num_blank[split] = len(parts) - len(kept)
            self.parts[split] = [parts[number] for number in kept]
            self.contents[split] = [self.contents[split][number] for number in kept]


def split_areas(
    domains: Mapping[str, Sequence[Picture]], split: str, val_fraction: float, test_fraction: float, seed: int
) -> tuple[list[list[dict[str, Area]]], dict[str, Any] | None]:
    """Of each domain and picture the area of each split; and, where pictures are cut into strips, what the manifest says."""
    if split != "region":
        dealt = deal_pictures(list(domains.values()), split, val_fraction, test_fraction, seed)
        return [_whole_areas(own, splits) for own, splits in zip(domains.values(), dealt, strict=True)], None
    every = [picture for pictures in domains.values() for picture in pictures]
    across, areas = strips(
        [picture.path for picture in every],
        [picture.form for picture in every],
        [picture.place for picture in every],
        val_fraction,
        test_fraction,
    )
    first = len(next(iter(domains.values())))
    parts = [areas[:first], areas[first:]][: len(domains)]
    of_domain = {
        name: [{split: list(area) for split, area in own.items()} for own in part]
        for name, part in zip(domains, parts, strict=True)
    }
    return parts, {"across": across, **of_domain}


def deal_pictures(
    domains: Sequence[Sequence[Picture]], how: str, val_fraction: float, test_fraction: float, seed: int
) -> list[dict[str, Indices]]:
    """Which pictures of each domain go to which split. What shows the same place, by its tags, is never parted.

    Raises:
        UsageError: fractions that leave a split of a domain empty.
    """
    every = [picture for pictures in domains for picture in pictures]
    groups = joined([picture.tags for picture in every])
    if how == "order":
        ordered = [in_order(len(pictures), val_fraction, test_fraction) for pictures in domains]
        # In order all of train comes first, then val, then test.
        owners = [split for splits in ordered for split, numbers in splits.items() for _ in numbers]
        check_whole(groups, owners, [picture.path for picture in every])
        return ordered
    first = len(domains[0])
    parts = [groups[:first], groups[first:]] if len(domains) == 2 else [groups]
    if len(parts) == 1 or not set(parts[0]) & set(parts[1]):
        return [by_group(part, val_fraction, test_fraction, seed) for part in parts]
    # Groups across both domains: they are dealt together.
    splits = by_group(groups, val_fraction, test_fraction, seed)
    dealt = [
        {split: numbers[(numbers >= low) & (numbers < high)] - low for split, numbers in splits.items()}
        for low, high in ((0, first), (first, len(groups)))
    ]
    for name, own in zip("ab", dealt, strict=True):
        for split, numbers in own.items():
            if not len(numbers):
                raise UsageError(
                    f"the {split} split gets no picture of domain {name}: pictures of one place (the same name in both domains, "
                    "or overlapping on the map) stay together; give other fractions or another seed"
                )
    return dealt


def cut(
    pictures: Sequence[Picture],
    areas: Sequence[Mapping[str, Area]],
    patch_px: int | None,
    stride_px: int | None,
    multiple: int,
) -> Domain:
    """The parts of the pictures of one domain.

    Args:
        pictures: the pictures, in sample order.
        areas: of each, the area of each split.
        patch_px: height and width of a patch; None for all of each area.
        stride_px: pixels from one patch to the next, None for patch_px.
        multiple: corners and sizes are multiples of this, counted from the picture's corner.
    """
    domain = Domain()
    small: list[str] = []
    for picture, own in zip(pictures, areas, strict=True):
        for split in SPLITS:
            if split not in own:
                continue
            row0, col0 = (-(-value // multiple) * multiple for value in own[split][:2])
            row1, col1 = (value // multiple * multiple for value in own[split][2:])
            height, width = row1 - row0, col1 - col0
            if min(height, width) < (patch_px or 1):
                small.append(f"{picture.path}: its {split} part, {height} × {width} pixels, holds no patch; left out")
                domain.num_small[split] = domain.num_small.get(split, 0) + 1
                continue
            size = (patch_px, patch_px) if patch_px else (height, width)
            stride = stride_px or patch_px
            corners = tiles_of(height, width, size, (stride, stride) if stride else size)
            for row, col in corners:
                box = (row0 + row, col0 + col, *size)
                area = (row0, col0, row1, col1)
                domain.parts.setdefault(split, []).append(Part(str(picture.path), box, area))
                domain.contents.setdefault(split, []).append(f"{picture.digest} {box} {area}")
    warn(small)
    return domain


def repeated(a: Domain, b: Domain, seed: int) -> tuple[dict[str, list[Sample]], dict[str, list[str]]]:
    """Pairs of parts of two domains and their contents: the shorter domain is repeated, the second one shuffled.

    Shuffled, so that a sample does not happen to hold the same place in both domains.

    Raises:
        UsageError: a split has samples of one domain only.
    """
    pairs: dict[str, list[Sample]] = {}
    contents: dict[str, list[str]] = {}
    for split in SPLITS:
        numbers = [len(domain.parts.get(split, ())) for domain in (a, b)]
        if not any(numbers):
            continue
        if not all(numbers):
            raise UsageError(
                f"the {split} split has {numbers[0]} samples of domain a and {numbers[1]} of b, and needs some of both; give "
                "smaller patches, other fractions, or 0 for a split that is not wanted"
            )
        order = np.random.default_rng(seed).permutation(numbers[1]).tolist()
        places = [(n % numbers[0], order[n % numbers[1]]) for n in range(max(numbers))]
        pairs[split] = [(a.parts[split][m], b.parts[split][n]) for m, n in places]
        contents[split] = [f"{a.contents[split][m]} {b.contents[split][n]}" for m, n in places]
    return pairs, contents


def _whole_areas(pictures: Sequence[Picture], splits: Mapping[str, Indices]) -> list[dict[str, Area]]:
    """All of each picture for the split that it was dealt to."""
    areas: list[dict[str, Area]] = [{} for _ in pictures]
    for split, numbers in splits.items():
        for number in numbers.tolist():
            areas[number][split] = (0, 0, pictures[number].form.height, pictures[number].form.width)
    return areas


def with_partners(
    domain: Domain, seconds: Mapping[str, Picture | None], scale: int, take_whole: bool
) -> tuple[dict[str, list[Sample]], dict[str, list[str]]]:
    """The samples of pictures in pairs, and what their bytes come from, by split.

    Args:
        domain: the parts of the first pictures.
        seconds: by the first picture's path, the second one.
        scale: how many times smaller it is.
        take_whole: all of it is taken, whatever its size.
    """
    items: dict[str, list[Sample]] = {}
    contents: dict[str, list[str]] = {}
    for split, parts in domain.parts.items():
        for part, content in zip(parts, domain.contents[split], strict=True):
            second, partner = seconds[part.path], None
            if second is not None:
                row, col, height, width = (value // scale for value in part.box)
                box = (0, 0, second.form.height, second.form.width) if take_whole else (row, col, height, width)
                partner = Part(str(second.path), box, part.area)
            items.setdefault(split, []).append((part, partner))
            contents.setdefault(split, []).append(f"{content} {second.digest if second else ''}")
    return items, contents


def check_splits(items: Mapping[str, Sequence[Any]], val_fraction: float, test_fraction: float) -> None:
    """Refuse splits that hold nothing though a share is asked for.

    Raises:
        UsageError: names the split.
    """
    for split, share in (("train", 1.0), ("val", val_fraction), ("test", test_fraction)):
        if share > 0 and not items.get(split):
            raise UsageError(
                f"the {split} split gets no samples; give smaller patches (--patch-px), other fractions, or 0 to leave a "
                "split out"
            )
