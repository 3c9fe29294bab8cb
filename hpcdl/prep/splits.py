"""Splits: which part of a scene trains, validates and tests. Parts are rectangles, so neighbours stay together.

Neighbouring chips look alike: drawn one by one, test chips would lie among train chips and the score would flatter. So
test and val are whole regions or blocks, and a buffer of chips beside them is left out of the splits that rank below
(test > val > train).

Blocks lie on a lattice of map coordinates and a block's split follows from its place on it, so what one scene tests on,
no other scene of that place trains on: with the same coordinate system, pixel size, block size, fractions and seed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcdl.errors import UsageError
from hpcdl.prep.chips import Chips, Rect, area, chips_in, merge, near, subtract
from hpcdl.raster.grid import Grid

# Chips along a block, unless block_px says otherwise: at 8 a buffer of one chip costs train about a seventh.
_BLOCK_CHIPS = 8
# A drawing that keeps less of its scarcest split than this gives way to splits side by side, which have short borders.
_KEEP = 0.6
# Splits side by side are made of at least so many strips and squares: fewer make fractions coarse.
_PIECES_WANTED = 20
# Up to so many rectangles, chips are also tried slid up to the buffers' edges; with more there are chips enough.
_FEW_RECTS = 64
_BESIDE_PX = 0.7
_RANK = ("test", "val", "train")
# The R2 sequence (Roberts 2018) in whole 2^-64: places on any window of the lattice spread evenly over 0..1, so that
# fractions hold for a few blocks already. 1/p and 1/p², p³ = p + 1.
_R2 = (13925041150013968384, 10511698283990654976)


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
    """Regions (before buffers) and chips of each split that has any, and how many chips lay in its buffer.

    `method` says how the regions came about: "regions" (all given), "blocks" (by map coordinates), or "sides" (the scene
    is too small for blocks: splits lie side by side). `origin` is (row, col) of a corner of the blocks' lattice.
    """

    regions: Mapping[str, list[Rect]]
    chips: Mapping[str, Chips]
    num_buffer: Mapping[str, int]
    method: str
    origin: tuple[int, int] = (0, 0)


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
    layout = _draw(grid, regions, rest, drawn, rules) if drawn else _chip(regions | {"train": rest}, rules, "regions")
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


def _chip(regions: Mapping[str, Sequence[Rect]], rules: SplitRules, method: str) -> Layout:
    """Chips of each split, less those in the buffer of a split that ranks higher."""
    merged = {split: merge(rects) for split, rects in regions.items()}
    chips: dict[str, Chips] = {}
    num_buffer: dict[str, int] = {}
    for split in reversed([split for split in _RANK if split in merged]):
        higher = [rect for other in _RANK[: _RANK.index(split)] for rect in merged.get(other, [])]
        found = chips_in(merged[split], rules.chip_px, rules.strides_px[split])
        close = near(found, rules.chip_px, higher, rules.buffer_px)
        num_buffer[split], chips[split] = int(close.sum()), found[~close]
        if 0 < len(higher) <= _FEW_RECTS:
            # A buffer ends where it ends, not where a chip does: chips that slide up to its edge can use what is left better.
            left = _without(merged[split], higher, rules.buffer_px)
            chips[split] = max(chips[split], chips_in(left, rules.chip_px, rules.strides_px[split]), key=len)
    return Layout({split: merged[split] for split in chips}, chips, num_buffer, method)


def _without(rects: Sequence[Rect], higher: Sequence[Rect], buffer_px: int) -> list[Rect]:
    """The rectangles less everything closer than the buffer to one of the higher splits' rectangles."""
    left = list(rects)
    for row0, col0, row1, col1 in higher:
        grown = (row0 - buffer_px, col0 - buffer_px, row1 + buffer_px, col1 + buffer_px)
        left = [part for piece in left for part in subtract(piece, grown)]
    return merge(left)


def _draw(
    grid: Grid,
    regions: Mapping[str, list[Rect]],
    rest: Sequence[Rect],
    fractions: Mapping[str, float],
    rules: SplitRules,
) -> Layout:
    """Draw parts of `rest` for the splits of `fractions`; the others train.

    Blocks by map coordinates, unless the scene is so small that buffers would eat up a split: then side by side.
    """
    shares = {**fractions, "train": 1 - sum(fractions.values())}
    total = sum(map(area, rest))

    def kept(layout: Layout) -> float:
        """Of what its fraction promises, the part that the scarcest split keeps."""
        pixels = {split: len(layout.chips[split]) * rules.strides_px[split] ** 2 for split in shares}
        return min(pixels[split] / (shares[split] * total) for split in shares)

    # The lattice's origin is the map's, less than a pixel beside it. Not rounded: Landsat's corners lie half a pixel beside
    # whole ones, and scenes of one place must agree to which side that goes.
    col, row = grid.to_pixel(0.0, 0.0)
    origin = _whole(row, grid.transform[4] > 0), _whole(col, grid.transform[0] > 0)
    drawn = _blocks_by_place(grid, rest, origin, fractions, rules)
    blocks = dataclasses.replace(_chip({**regions, **drawn}, rules, "blocks"), origin=origin)
    if kept(blocks) >= _KEEP or rules.block_px is not None:
        return blocks
    piece_px = _piece_px(rest, rules.chip_px)
    pieces = [piece for rect in rest for piece in blocks_of(rect, piece_px)]
    numbers = {split: max(1, round(share * len(pieces))) for split, share in fractions.items()}
    if sum(numbers.values()) >= len(pieces):
        raise UsageError(
            f"the scene has {len(pieces)} block(s) of {piece_px} pixels, too few for splits by fraction; choose a "
            "smaller --chip-px, or give whole sides with --test-region east:0.3"
        )

    def side_by_side(axis: int, sign: int) -> Layout:
        order = _from_both_ends(pieces, numbers, axis, sign)
        drawn: dict[str, list[Rect]] = dict(regions)
        wanted = {**numbers, "train": len(pieces) - sum(numbers.values())}
        for split, number in wanted.items():
            drawn[split], order = [pieces[place] for place in sorted(order[:number])], order[number:]
        return _chip(drawn, rules, "sides")

    ways = [(0, 1), (0, -1), (1, 1), (1, -1)]
    first = int.from_bytes(hashlib.sha256(f"{rules.seed}".encode()).digest()[:8], "little") % len(ways)
    # The seed decides between ways that keep the same.
    sides = [side_by_side(*way) for way in ways[first:] + ways[:first]]
    return max([*sides, blocks], key=kept)


def _whole(place: float, ascends: bool) -> int:
    """A whole pixel beside the map's origin: on the same side of it, on the map, whichever way the grid's axis runs."""
    return math.floor(place + _BESIDE_PX) if ascends else -math.floor(_BESIDE_PX - place)


def _blocks_by_place(
    grid: Grid, rest: Sequence[Rect], origin: tuple[int, int], fractions: Mapping[str, float], rules: SplitRules
) -> dict[str, list[Rect]]:
    """`rest` cut along a lattice of map coordinates; the split of a cell follows from its place on the map."""
    block_px = rules.block_px or _BLOCK_CHIPS * rules.chip_px
    seed = int.from_bytes(hashlib.sha256(f"hpcdl-splits:{rules.seed}".encode()).digest()[:8], "little")
    drawn: dict[str, list[Rect]] = {split: [] for split in (*fractions, "train")}
    test, val = fractions.get("test", 0.0), fractions.get("val", 0.0)
    for row0, col0, row1, col1 in rest:
        rows, cols = _lattice(row0, row1, origin[0], block_px), _lattice(col0, col1, origin[1], block_px)
        for top, bottom in itertools.pairwise(rows):
            south = (top - origin[0]) // block_px
            # Counted northwards and eastwards, whichever way the grid's rows and columns run.
            north = -1 - south if grid.transform[4] < 0 else south
            for left, right in itertools.pairwise(cols):
                east = (left - origin[1]) // block_px
                east = east if grid.transform[0] > 0 else -1 - east
                place = (seed + east * _R2[0] + north * _R2[1]) % 2**64 / 2**64
                split = "test" if place < test else "val" if place >= 1 - val else "train"
                drawn[split].append((top, left, bottom, right))
    return drawn


def _lattice(start: int, stop: int, origin: int, step: int) -> list[int]:
    """Where an axis is cut by a lattice of that origin and step, its ends included."""
    first = origin + math.floor((start - origin) / step + 1) * step
    return [start, *range(first, stop, step), stop]


def _from_both_ends(blocks: Sequence[Rect], numbers: Mapping[str, int], axis: int, sign: int) -> list[int]:
    """An order in which the first split lies at one end of the scene, a second one at the other, and train between them."""
    order = sorted(range(len(blocks)), key=lambda n: (sign * blocks[n][axis], blocks[n][1 - axis]))
    first, *second = numbers.values()
    last = len(order) - sum(second)
    return order[:first] + order[last:] + order[first:last]


def _piece_px(rects: Sequence[Rect], chip_px: int) -> int:
    """The largest whole number of chips for which the rectangles hold at least 20 pieces; one chip when none does."""
    longest = max(max(row1 - row0, col1 - col0) for row0, col0, row1, col1 in rects)
    for piece_px in range(longest // chip_px * chip_px, chip_px, -chip_px):
        if sum(len(blocks_of(rect, piece_px)) for rect in rects if area(rect) >= piece_px**2) >= _PIECES_WANTED:
            return piece_px
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
