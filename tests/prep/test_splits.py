from __future__ import annotations

import dataclasses
import itertools
import tracemalloc

import numpy as np
import pytest
from rasterio.crs import CRS

from hpcdl.errors import UsageError
from hpcdl.prep.splits import SplitRules, lay_out, parse_region
from hpcdl.raster.grid import Grid

WKT = CRS.from_epsg(32612).to_wkt()
RULES = SplitRules(
    chip_px=8, strides_px={"train": 8, "val": 8, "test": 8}, buffer_px=8, block_px=None, test_fraction=0.2,
    val_fraction=0.1, test_region=None, val_region=None, seed=0,
)  # fmt: skip


def grid(height: int, width: int) -> Grid:
    return Grid(WKT, (30.0, 0.0, 300_000.0, 0.0, -30.0, 4_150_000.0), height, width)


def paint(layout, size, chip_px):
    canvases = {split: np.zeros(size, bool) for split in layout.chips}
    for split, chips in layout.chips.items():
        for row, col in chips.tolist():
            canvases[split][row : row + chip_px, col : col + chip_px] = True
    return canvases


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seed": 3, "strides_px": {"train": 3, "val": 8, "test": 5}},
        {"test_region": "east:0.3", "val_fraction": 0.0},
        {"test_region": "east:0.3"},
        {"test_region": "north:0.25", "val_region": "south:0.25"},
        {"test_region": "bbox:300600,4148200,301800,4149400", "val_fraction": 0.0},
        {"buffer_px": 0},
        {"buffer_px": 13, "block_px": 24},
    ],
)
def test_no_pixel_of_one_split_is_within_the_buffer_of_another(changes):
    rules = dataclasses.replace(RULES, **changes)
    height, width = 110, 130
    layout = lay_out(grid(height, width), rules)
    painted = paint(layout, (height, width), rules.chip_px)
    for split, chips in layout.chips.items():
        region = np.zeros((height, width), bool)
        for row0, col0, row1, col1 in layout.regions[split]:
            assert not region[row0:row1, col0:col1].any()
            region[row0:row1, col0:col1] = True
        assert not painted[split][~region].any()
        assert len(np.unique(chips, axis=0)) == len(chips) > 0
        assert chips.tolist() == sorted(chips.tolist())
    total = sum((r1 - r0) * (c1 - c0) for rects in layout.regions.values() for r0, c0, r1, c1 in rects)
    assert total == height * width
    for one, other in itertools.combinations(painted, 2):
        rows, cols = np.nonzero(painted[one])
        buffer = rules.buffer_px
        grown = np.zeros((height + 2 * buffer, width + 2 * buffer), bool)
        for row_step, col_step in itertools.product((0, buffer, 2 * buffer), repeat=2):
            grown[rows + row_step, cols + col_step] = True
        # Chips are no smaller than half the buffer, so these nine copies leave no gap that a chip could hide in.
        assert not (grown[buffer : buffer + height, buffer : buffer + width] & painted[other]).any()


def test_chips_are_dropped_only_for_the_buffer_and_counted():
    layout = lay_out(grid(64, 100), dataclasses.replace(RULES, test_region="east:0.3", val_fraction=0.0))
    assert layout.regions == {"test": [(0, 70, 64, 100)], "train": [(0, 0, 64, 70)]}
    # Of columns 0, 8, …, 56 and 62 (slid inward) the last two lie in the buffer; a column slid up to it takes their place.
    assert sorted(set(layout.chips["train"][:, 1].tolist())) == [0, 8, 16, 24, 32, 40, 48, 54]
    assert layout.num_buffer == {"train": 2 * 8, "test": 0}
    assert sorted(set(layout.chips["test"][:, 1].tolist())) == [70, 78, 86, 92]


def test_the_seed_decides_the_blocks():
    first, again = lay_out(grid(160, 160), RULES), lay_out(grid(160, 160), RULES)
    other = lay_out(grid(160, 160), dataclasses.replace(RULES, seed=1))
    assert first.regions == again.regions
    assert first.regions != other.regions


def test_fractions_and_buffers_leave_most_of_the_scene_in_use():
    layout = lay_out(
        grid(1000, 1000),
        dataclasses.replace(RULES, chip_px=32, buffer_px=32, strides_px=dict.fromkeys(RULES.strides_px, 32)),
    )
    numbers = {split: len(chips) for split, chips in layout.chips.items()}
    assert numbers["train"] > 0.35 * 31 * 31
    assert numbers["test"] > 0.15 * 31 * 31


def test_sides_and_boxes():
    here = grid(100, 200)
    assert parse_region("east:0.3", here, "") == (0, 140, 100, 200)
    assert parse_region("west:0.3", here, "") == (0, 0, 100, 60)
    assert parse_region("north:0.5", here, "") == (0, 0, 50, 200)
    assert parse_region("south:0.1", here, "") == (90, 0, 100, 200)
    assert parse_region("bbox:300030,4149910,300090,4149970", here, "") == (1, 1, 3, 3)
    flipped = Grid(WKT, (30.0, 0.0, 300_000.0, 0.0, 30.0, 4_150_000.0), 100, 200)
    assert parse_region("north:0.5", flipped, "") == (50, 0, 100, 200)


@pytest.mark.parametrize(
    "text", ["east", "east:1.5", "east:0", "up:0.3", "bbox:1,2,3", "bbox:3,2,1,4", "east:a", "east:nan", ""]
)
def test_faulty_regions_are_refused(text):
    with pytest.raises(UsageError, match=r"--test-region .* is not understood.*east:0\.3"):
        parse_region(text, grid(100, 200), "--test-region")


def test_a_box_outside_the_scene_is_refused():
    with pytest.raises(UsageError, match="outside the scene"):
        parse_region("bbox:1,2,3,4", grid(100, 200), "--test-region")


def test_what_is_too_small_is_refused_with_a_way_out():
    with pytest.raises(UsageError, match=r"chip_px 128 is larger.*100 × 200 pixels; choose --chip-px 100"):
        lay_out(grid(100, 200), dataclasses.replace(RULES, chip_px=128))
    with pytest.raises(UsageError, match="too few for splits by fraction"):
        lay_out(grid(10, 10), RULES)
    with pytest.raises(UsageError, match=r"train split gets no chips .*--chip-px"):
        lay_out(grid(40, 40), dataclasses.replace(RULES, test_region="east:0.9", val_fraction=0.0))
    with pytest.raises(UsageError, match="leave some of it to train"):
        lay_out(grid(40, 40), dataclasses.replace(RULES, test_region="bbox:0,0,9e6,9e6"))


def split_at(layout, here: Grid, x: float, y: float) -> str:
    col, row = here.to_pixel(x, y)
    (found,) = (
        split
        for split, rects in layout.regions.items()
        if any(r0 <= row < r1 and c0 <= col < c1 for r0, c0, r1, c1 in rects)
    )
    return found


def test_a_place_has_one_split_in_every_scene_of_it():
    # Scenes of one pixel size, shifted against each other, one of them written from south to north.
    scenes = [
        grid(700, 800),
        Grid(WKT, (30.0, 0.0, 300_000.0 + 30 * 211, 0.0, -30.0, 4_150_000.0 - 30 * 97), 900, 650),
        Grid(WKT, (30.0, 0.0, 300_000.0 + 30 * 50, 0.0, 30.0, 4_150_000.0 - 30 * 690), 640, 700),
    ]
    layouts = [lay_out(scene, RULES) for scene in scenes]
    assert {layout.method for layout in layouts} == {"blocks"}
    random = np.random.default_rng(0)
    seen = set()
    for x, y in zip(random.uniform(307_000, 320_000, 400), random.uniform(4_131_000, 4_146_000, 400), strict=True):
        splits = {split_at(layout, scene, x, y) for layout, scene in zip(layouts, scenes, strict=True)}
        assert len(splits) == 1, (x, y)
        seen |= splits
    assert seen == {"train", "val", "test"}


def test_fractions_hold_for_few_blocks_and_for_many():
    for size in (300, 1200):
        for seed in range(5):
            layout = lay_out(grid(size, size), dataclasses.replace(RULES, seed=seed))
            shares = {
                split: sum((r1 - r0) * (c1 - c0) for r0, c0, r1, c1 in rects) / size**2
                for split, rects in layout.regions.items()
            }
            # 22 blocks of 64 pixels, some of them cut by the edges, and 350.
            tolerance = 0.12 if size == 300 else 0.02
            assert shares["test"] == pytest.approx(0.2, abs=tolerance)
            assert shares["val"] == pytest.approx(0.1, abs=tolerance)


def test_a_scene_too_small_for_blocks_is_split_side_by_side():
    layout = lay_out(grid(84, 84), RULES)
    assert layout.method == "sides"
    assert all(len(chips) for chips in layout.chips.values())
    assert (
        lay_out(grid(64, 100), dataclasses.replace(RULES, test_region="east:0.3", val_fraction=0)).method == "regions"
    )


def test_a_million_chips_are_laid_out_with_little_memory():
    rules = dataclasses.replace(RULES, chip_px=128, buffer_px=128, strides_px=dict.fromkeys(RULES.strides_px, 128))
    tracemalloc.start()
    layout = lay_out(grid(128_000, 128_000), rules)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(map(len, layout.chips.values())) + sum(layout.num_buffer.values()) > 1_000_000
    assert most < 200e6
