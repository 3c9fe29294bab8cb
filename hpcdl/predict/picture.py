"""The picture of a map: image, labels and prediction side by side in the classes' own colours, with a legend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from hpcdl.predict.accuracy import Scores
from hpcdl.predict.blend import NO_CLASS
from hpcdl.predict.request import Job
from hpcdl.predict.views import NO_DATA_COLOR, Colors, colored, shown_bands, thinning, view_image, view_labels, view_map
from hpcdl.raster.grid import Grid, parse_crs

LONGEST_PX = 1400
_DPI = 140
_PANEL_IN = 5.6  # longer side of one of several panels
_MARGIN_IN, _GAP_IN, _HEAD_IN = 0.3, 0.22, 1.12
_INK, _SOFT = "#1f2328", "#59636e"


def draw_map(path: Path, map_file: Path, job: Job, scores: Scores | None) -> None:
    """Write the picture of a finished map.

    Raises:
        FailedError: an input is damaged.
    """
    inputs, classes = job.inputs, job.trained.classes
    step = thinning(inputs.target, LONGEST_PX)
    names = inputs.scenes.band_names
    # The run knows its bands by the names of the files it was trained on; these files may be called anything.
    bands = shown_bands(job.trained.manifest.entries.get("bands") or names)
    image = view_image(inputs, bands, job.settings.resampling, step)
    predicted = view_map(map_file, inputs, classes, step)
    panels = [(f"Image ({', '.join(names[band] for band in bands)})", image)]
    seen = {*np.unique(predicted).tolist()}
    if inputs.labels is not None:
        labels = view_labels(inputs, classes, step)
        seen |= {*np.unique(labels).tolist()}
        panels.append(("Labels", colored(labels, classes)))
    panels.append(("Prediction", colored(predicted, classes)))
    legend = [entry for index, entry in enumerate(classes) if index in seen]
    with mpl.rc_context({"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "text.color": _INK}):
        _draw(path, panels, legend, NO_CLASS in seen, job, scores, step)


def _draw(
    path: Path,
    panels: Sequence[tuple[str, Colors]],
    legend: Sequence[Mapping[str, Any]],
    gaps: bool,
    job: Job,
    scores: Scores | None,
    step: int,
) -> None:
    rows, cols, width, height = _layout(panels[0][1].shape, len(panels))
    inner = cols * width + (cols - 1) * _GAP_IN
    total_width = max(inner, 8.4) + 2 * _MARGIN_IN
    columns = max(1, min(5, int((total_width - 2 * _MARGIN_IN) / 2.75), len(legend) + gaps))
    legend_height = 0.235 * math.ceil((len(legend) + gaps) / columns) + 0.3
    title_height = 0.36
    total_height = _HEAD_IN - title_height + rows * (height + title_height) + (rows - 1) * 0.1 + legend_height + 0.2
    figure = Figure((total_width, total_height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    left = (total_width - inner) / 2

    def at(x: float, y: float) -> tuple[float, float]:
        """Figure fractions of inches from the top left corner."""
        return x / total_width, 1 - y / total_height

    figure.text(*at(left, 0.26), job.trained.run.name, size=17, weight="bold", va="top")
    figure.text(*at(left, 0.6), _subtitle(job, scores), size=10.5, color=_SOFT, va="top")
    for place, (title, colors) in enumerate(panels):
        x = left + place % cols * (width + _GAP_IN)
        y = _HEAD_IN + place // cols * (height + title_height + 0.1)
        axes = figure.add_axes((*at(x, y + height), width / total_width, height / total_height))
        axes.imshow(colors, interpolation="antialiased", aspect="auto")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color("#8b949e")
            spine.set_linewidth(0.8)
        axes.set_title(title, loc="left", size=12, weight="bold", color=_INK, pad=6)
        if place == 0:
            _scale_bar(axes, job.inputs.target, step, colors.shape[1], width)
        else:
            _outline(axes, job, step)
    patches = [Patch(facecolor=_hex(entry["color"]), edgecolor="#57606a", linewidth=0.5) for entry in legend]
    labels = [str(entry["name"]) for entry in legend]
    if gaps:
        patches.append(Patch(facecolor=_hex(NO_DATA_COLOR), edgecolor="#57606a", linewidth=0.5))
        labels.append("No data")
    figure.legend(
        patches, labels, loc="upper left", bbox_to_anchor=at(left - 0.06, total_height - legend_height - 0.1), ncols=columns,
        frameon=False, fontsize=10.5, handlelength=1.5, handleheight=1.05, columnspacing=1.6, labelspacing=0.5,
        borderpad=0.2, borderaxespad=0,
    )  # fmt: skip
    figure.savefig(path, dpi=_DPI, metadata={"Software": "hpcdl", "Title": f"{job.trained.run.name}: land-cover map"})


def _layout(shape: tuple[int, ...], number: int) -> tuple[int, int, float, float]:
    """(rows, columns of panels, width, height of one in inches): side by side, but wide scenes below each other."""
    ratio = shape[1] / shape[0]
    if ratio > 2.4:
        width = 2 * _PANEL_IN
        return number, 1, width, max(width / ratio, 0.4)
    width = _PANEL_IN * min(1, ratio)
    return 1, number, max(width, 0.4), _PANEL_IN * min(1, 1 / ratio)


def _subtitle(job: Job, scores: Scores | None) -> str:
    grid = job.inputs.target
    size = f"{grid.height:,} × {grid.width:,} pixels"
    # A coordinate system without a short name would fill the line with its WKT.
    parts = [size if len(grid.name) > 20 else f"{size}, {grid.name}"]
    parts.append(f"step {int(job.trained.checkpoint.name.removeprefix('step-')):,}")
    if scores is not None:
        where = "" if job.settings.region == "all" else f" in region {job.settings.region} (outlined)"
        parts.append(f"accuracy {scores.accuracy:.3f}, macro-F1 {scores.macro_f1:.3f}{where}")
    return "   ·   ".join(parts)


def _outline(axes: Any, job: Job, step: int) -> None:
    """Draw the scored region, clipped to the map."""
    for row0, col0, row1, col1 in job.inputs.regions or ():
        top, left = max(row0, 0) / step, max(col0, 0) / step
        bottom, right = min(row1, job.inputs.target.height) / step, min(col1, job.inputs.target.width) / step
        if bottom > top and right > left:
            box = Rectangle(
                (left - 0.5, top - 0.5),
                right - left,
                bottom - top,
                fill=False,
                edgecolor="black",
                linewidth=1.4,
                clip_on=False,
            )
            box.set_path_effects([withStroke(linewidth=3, foreground="white")])
            axes.add_patch(box)


def _scale_bar(axes: Any, grid: Grid, step: int, width_px: int, width_in: float) -> None:
    """A bar of a round length, about a fifth of the panel, where the coordinate system has a length."""
    crs = parse_crs(grid.crs)
    if not crs.is_projected:
        return
    meters_px = math.hypot(grid.transform[0], grid.transform[3]) * float(crs.linear_units_factor[1]) * step
    wanted = meters_px * width_px / 4
    power = 10 ** math.floor(math.log10(wanted))
    meters = max(factor * power for factor in (1, 2, 5) if factor * power <= wanted)
    text = f"{meters / 1000:g} km" if meters >= 1000 else f"{meters:g} m"
    start, end = 0.035, 0.035 + meters / (meters_px * width_px)
    halo = [withStroke(linewidth=4, foreground="#000000b0")]
    line = Line2D([start, end], [0.04, 0.04], transform=axes.transAxes, color="white", linewidth=2.5, path_effects=halo)
    axes.add_line(line)
    axes.text(
        (start + end) / 2, 0.055, text, transform=axes.transAxes, color="white", size=10, weight="bold", ha="center",
        va="bottom", path_effects=[withStroke(linewidth=2.5, foreground="#000000b0")],
    )  # fmt: skip


def _hex(color: Sequence[int]) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in color)
