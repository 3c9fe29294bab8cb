"""Splits: which part of a scene trains, validates and tests. Parts are rectangles, so neighbours stay together.

Neighbouring chips look alike: drawn one by one, test chips would lie among train chips and the score would flatter. So
test and val are whole regions or blocks, and a buffer of chips beside them is left out of the splits that rank below
(test > val > train).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpcdl.errors import UsageError
from hpcdl.prep.chips import Chips, Rect, area, chips_in, merge, near, subtract
from hpcdl.raster.grid import Grid

# A split is drawn from at least so many blocks, when the scene has room for them: fewer make fractions coarse.
_BLOCKS_WANTED = 20
# Random drawings of blocks that are compared; the one whose buffers cost the least is taken.
_DRAWINGS = 40
# A drawing that keeps less of its scarcest split than this gives way to splits side by side, which have short borders.
_KEEP = 0.6
_RANK = ("test", "val", "train")


@dataclass(frozen=True)
class SplitRules:
    """How to split; see the fields of the same names in landcover.Settings."""

    chip_px: int
    strides_px: Mapping[str, int]
    buffer_px: int
    block_px: int | None
    test_fraction: float
    val_fraction: float
    test_region: str | None
    val_region: str | None
    seed: int


@dataclass(frozen=True)
class Layout:
    """Regions (before buffers) and chips of each split that has any, and how many chips lay in its buffer."""

    regions: Mapping[str, list[Rect]]
    chips: Mapping[str, Chips]
    num_buffer: Mapping[str, int]


def lay_out(grid: Grid, rules: SplitRules) -> Layout:
    """Split a grid.

    Raises:
        UsageError: a region is not understood or leaves nothing, or a split gets no chips.
    """
    if rules.chip_px > min(grid.height, grid.width):
        raise UsageError(
            f"chip_px {rules.chip_px} is larger than the part of the scene that has images and labels, "
            f"{grid.height} × {grid.width} pixels; choose --chip-px {min(grid.height, grid.width)} or less"
        )
    regions: dict[str, list[Rect]] = {}
    rest: list[Rect] = [(0, 0, grid.height, grid.width)]
    for split, text in (("test", rules.test_region), ("val", rules.val_region)):
        if text is not None:
            rect = parse_region(text, grid, f"--{split}-region")
            regions[split] = [part for piece in rest for part in _overlap(piece, rect)]
            rest = [part for piece in rest for part in subtract(piece, rect)]
    if not rest:
        raise UsageError("the test and val regions take the whole scene; leave some of it to train")
    fractions = {"test": rules.test_fraction, "val": rules.val_fraction}
    drawn = {split: share for split, share in fractions.items() if split not in regions and share > 0}
    layout = _draw(regions, rest, drawn, rules) if drawn else _chip(regions | {"train": rest}, rules)
    for split, chips in layout.chips.items():
        if len(chips) == 0:
            raise UsageError(
                f"the {split} split gets no chips ({layout.num_buffer[split]} lie in the buffer beside another split): "
                f"the scene of {grid.height} × {grid.width} pixels is too small for this split; choose a smaller "
                "--chip-px or --buffer-px, other fractions, or give whole sides with --test-region east:0.3"
            )
    return layout


def parse_region(text: str, grid: Grid, option: str) -> Rect:
    """The pixels of "east:0.3" (a side and its share of the scene) or "bbox:minx,miny,maxx,maxy" (in the grid's CRS).

    Raises:
        UsageError: neither of these, or outside the grid.
    """
    name, _, rest = text.partition(":")
    try:
        numbers = [float(part) for part in rest.split(",")]
    except ValueError:
        numbers = []
    if name in ("north", "south", "east", "west") and len(numbers) == 1 and 0 < numbers[0] < 1:
        return _side(name, numbers[0], grid)
    if name == "bbox" and len(numbers) == 4 and numbers[0] < numbers[2] and numbers[1] < numbers[3]:
        part = grid.cropped((numbers[0], numbers[1], numbers[2], numbers[3]))
        if part is None:
            raise UsageError(f"{option} {text}: lies outside the scene, which covers {_box_text(grid)} in {grid.name}")
        row, col = part.offset_in(grid) or (0, 0)
        return row, col, row + part.height, col + part.width
    raise UsageError(
        f"{option} {text!r} is not understood; give a side and its share, such as east:0.3 (also west, north, south), "
        "or bbox:minx,miny,maxx,maxy in the target grid's coordinates"
    )


def _side(name: str, share: float, grid: Grid) -> Rect:
    height, width = grid.height, grid.width
    north_up, east_right = grid.transform[4] < 0, grid.transform[0] > 0
    if name in ("north", "south"):
        if (name == "north") == north_up:
            return 0, 0, round(height * share), width
        return round(height * (1 - share)), 0, height, width
    if (name == "west") == east_right:
        return 0, 0, height, round(width * share)
    return 0, round(width * (1 - share)), height, width


def _box_text(grid: Grid) -> str:
    return ",".join(f"{number:.10g}" for number in grid.bounds)


def _overlap(piece: Rect, rect: Rect) -> list[Rect]:
    both = (max(piece[0], rect[0]), max(piece[1], rect[1]), min(piece[2], rect[2]), min(piece[3], rect[3]))
    return [both] if both[0] < both[2] and both[1] < both[3] else []


def _chip(regions: Mapping[str, Sequence[Rect]], rules: SplitRules) -> Layout:
    """Chips of each split, less those in the buffer of a split that ranks higher."""
    merged = {split: merge(rects) for split, rects in regions.items()}
    chips: dict[str, Chips] = {}
    num_buffer: dict[str, int] = {}
    for split in reversed([split for split in _RANK if split in merged]):
        higher = [rect for other in _RANK[: _RANK.index(split)] for rect in merged.get(other, [])]
        found = chips_in(merged[split], rules.chip_px, rules.strides_px[split])
        close = near(found, rules.chip_px, higher, rules.buffer_px)
        # A buffer ends where it ends, not where a chip does: chips that slide up to its edge can use what is left better.
        slid = chips_in(_without(merged[split], higher, rules.buffer_px), rules.chip_px, rules.strides_px[split])
        chips[split], num_buffer[split] = max(found[~close], slid, key=len), int(close.sum())
    return Layout({split: merged[split] for split in chips}, chips, num_buffer)


def _without(rects: Sequence[Rect], higher: Sequence[Rect], buffer_px: int) -> list[Rect]:
    """The rectangles less everything closer than the buffer to one of the higher splits' rectangles."""
    left = list(rects)
    for row0, col0, row1, col1 in higher:
        grown = (row0 - buffer_px, col0 - buffer_px, row1 + buffer_px, col1 + buffer_px)
        left = [part for piece in left for part in subtract(piece, grown)]
    return merge(left)


def _draw(
    regions: Mapping[str, list[Rect]], rest: Sequence[Rect], fractions: Mapping[str, float], rules: SplitRules
) -> Layout:
    """Draw whole blocks of `rest` for the splits of `fractions`; the others train.

    Buffers cost most when blocks lie scattered. Of some drawings the one is taken whose scarcest split keeps the
    largest part of the chips that its fraction promises; in a small scene, where all of them lose much, the splits lie
    side by side instead.
    """
    block_px = rules.block_px or default_block_px(rest, rules.chip_px)
    blocks = [block for rect in rest for block in blocks_of(rect, block_px)]
    numbers = {split: max(1, round(share * len(blocks))) for split, share in fractions.items()}
    if sum(numbers.values()) >= len(blocks):
        raise UsageError(
            f"the scene has {len(blocks)} block(s) of {block_px} pixels, too few for splits by fraction; choose a "
            "smaller --block-px or --chip-px, or give whole sides with --test-region east:0.3"
        )
    wanted = {"train": len(blocks) - sum(numbers.values()), **numbers}
    random = np.random.default_rng(rules.seed)
    # Chips of a drawing, about; a scene with very many has blocks to spare, and comparing drawings would take minutes.
    num_chips = sum(area(block) for block in blocks) // min(rules.strides_px.values()) ** 2
    num_drawings = max(1, min(_DRAWINGS, 4_000_000 // max(1, num_chips)))

    def lay(order: list[int]) -> tuple[float, Layout]:
        drawn: dict[str, list[Rect]] = dict(regions)
        for split in (*fractions, "train"):
            drawn[split] = [blocks[number] for number in sorted(order[: wanted[split]])]
            order = order[wanted[split] :]
        layout = _chip(drawn, rules)
        # Chips kept per block wanted, with the stride taken out, so that splits of unequal strides compare.
        return min(len(layout.chips[split]) * rules.strides_px[split] ** 2 / wanted[split] for split in wanted), layout

    def best(orders: Iterable[list[int]]) -> tuple[float, Layout]:
        return max((lay(order) for order in orders), key=lambda pair: pair[0])

    kept, layout = best(random.permutation(len(blocks)).tolist() for _ in range(num_drawings))
    if kept < _KEEP * block_px**2:
        compact = best(_from_both_ends(blocks, numbers, axis, sign) for axis in (0, 1) for sign in (1, -1))
        layout = max((kept, layout), compact, key=lambda pair: pair[0])[1]
    return layout


def _from_both_ends(blocks: Sequence[Rect], numbers: Mapping[str, int], axis: int, sign: int) -> list[int]:
    """An order in which the first split lies at one end of the scene, a second one at the other, and train between them."""
    order = sorted(range(len(blocks)), key=lambda n: (sign * blocks[n][axis], blocks[n][1 - axis]))
    first, *second = numbers.values()
    last = len(order) - sum(second)
    return order[:first] + order[last:] + order[first:last]


def default_block_px(rects: Sequence[Rect], chip_px: int) -> int:
    """The largest whole number of chips for which the rectangles hold at least 20 blocks; one chip when none does."""
    longest = max(max(row1 - row0, col1 - col0) for row0, col0, row1, col1 in rects)
    for block_px in range(longest // chip_px * chip_px, chip_px, -chip_px):
        if sum(len(blocks_of(rect, block_px)) for rect in rects if area(rect) >= block_px**2) >= _BLOCKS_WANTED:
            return block_px
    return chip_px


def blocks_of(rect: Rect, block_px: int) -> list[Rect]:
    """A rectangle cut into blocks, row by row; the last of each row and column takes what is left over as well."""
    row0, col0, row1, col1 = rect
    rows = _edges(row0, row1, block_px)
    cols = _edges(col0, col1, block_px)
    return [
        (top, left, bottom, right)
        for top, bottom in itertools.pairwise(rows)
        for left, right in itertools.pairwise(cols)
    ]


def _edges(start: int, stop: int, block_px: int) -> list[int]:
    return [start + block_px * number for number in range(max(1, (stop - start) // block_px))] + [stop]
