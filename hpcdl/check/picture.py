"""The picture of a data set's splits on the map, beside the labels that its chips hold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hpcdl.raster.grid import Grid
from hpcdl.shards.manifest import Manifest
from hpcdl.shards.reader import ShardReader

Colors = npt.NDArray[np.uint8]
_LONGEST_PX = 1200
_DPI = 140
_EMPTY = (240, 240, 240)
# Told apart by readers of all kinds of colour vision (Okabe and Ito 2008).
SPLIT_COLORS = {"train": "#0072b2", "val": "#e69f00", "test": "#d55e00"}
_INK = "#1f2328"


def draw_splits(path: Path, manifest: Manifest, chips: dict[str, Any]) -> None:
    """Write the picture as a PNG; left: which split each place is in, right: the labels in their classes' colours."""
    grid = Grid.from_json(manifest.entries["grid"])
    size = int(manifest.entries["grid"]["chip_px"])
    step = max(1, math.ceil(max(grid.height, grid.width) / _LONGEST_PX))
    shape = (-(-grid.height // step), -(-grid.width // step))
    places = np.full((*shape, 3), _EMPTY, np.uint8)
    labels = np.full((*shape, 3), _EMPTY, np.uint8)
    table = _class_colors(manifest)
    for split, found in chips.items():
        color = (np.array(to_rgb(SPLIT_COLORS.get(split, "#777777"))) * 255).astype(np.uint8)
        reader = ShardReader(manifest, split, ("label",)) if "label" in manifest.fields else None
        for number, (row, col) in enumerate(found.tolist()):
            # The canvas's pixels are every step-th of the grid's, from the first on.
            top, left = -(-row // step), -(-col // step)
            bottom, right = -(-(row + size) // step), -(-(col + size) // step)
            places[top:bottom, left:right] = color
            if reader is not None:
                label_HW = reader.gather(np.array([number]))["label"][0]
                labels[top:bottom, left:right] = table[label_HW[top * step - row :: step, left * step - col :: step]]
    with mpl.rc_context({"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "text.color": _INK}):
        _draw(path, manifest, grid, places, labels, {split: len(found) for split, found in chips.items()})


def _class_colors(manifest: Manifest) -> Colors:
    table = np.full((256, 3), _EMPTY, np.uint8)
    for entry in manifest.entries.get("classes", []):
        table[entry["index"]] = entry.get("color", (119, 119, 119))
    return table


def _draw(path: Path, manifest: Manifest, grid: Grid, places: Colors, labels: Colors, numbers: dict[str, int]) -> None:
    ratio = places.shape[0] / places.shape[1]
    width = 5.6 if ratio <= 1 else 5.6 / ratio
    figure = Figure((2 * width + 1.9, width * ratio + 2.1), dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{manifest.folder.name}: splits", weight="bold", size=13)
    left, bottom, right, top = grid.bounds
    extent = (left / 1000, right / 1000, bottom / 1000, top / 1000)
    north_up = grid.transform[4] < 0
    for number, (title, colors) in enumerate((("Splits", places), ("Labels of the chips", labels))):
        axes = figure.add_subplot(1, 2, number + 1)
        axes.imshow(colors if north_up else colors[::-1], extent=extent, interpolation="nearest")
        axes.set_title(title, size=11)
        axes.set_xlabel("easting, 1000 map units", size=8)
        axes.tick_params(labelsize=7)
        if number == 0:
            axes.set_ylabel("northing, 1000 map units", size=8)
        else:
            axes.tick_params(labelleft=False)
    handles = [
        Patch(color=SPLIT_COLORS.get(split, "#777777"), label=f"{split}: {n} chips") for split, n in numbers.items()
    ]
    handles.append(Patch(color=[part / 255 for part in _EMPTY], label="buffer, or no data"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=8,
        title=grid.name,
        title_fontsize=8,
    )
    figure.savefig(path, format="png", metadata={"Software": "hpcdl"})
