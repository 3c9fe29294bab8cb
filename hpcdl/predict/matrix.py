"""The picture of a confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hpcdl.predict.accuracy import Counts

_INK, _SOFT = "#1f2328", "#59636e"


def draw_confusion(path: Path, pixels_KK: Counts, classes: Sequence[Mapping[str, Any]], title: str) -> None:
    """Percent of each true class by predicted class, for the classes that occur in either."""
    kept = np.flatnonzero(pixels_KK.sum(axis=0) + pixels_KK.sum(axis=1))
    pixels_KK = pixels_KK[np.ix_(kept, kept)]
    support = pixels_KK.sum(axis=1)
    share_KK = pixels_KK / np.maximum(support, 1)[:, None]
    names = [str(classes[index]["name"]) for index in kept.tolist()]
    number = len(names)
    with mpl.rc_context({"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "text.color": _INK}):
        side = max(3.0, 0.52 * number)
        left = 1.0 + 0.088 * max(map(len, names)) + 0.75
        foot = 0.55 + 0.062 * max(map(len, names))
        width, height = left + side + 0.5, 1.0 + side + foot
        figure = Figure((width, height), dpi=140, facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((left / width, foot / height, side / width, side / height))
        axes.imshow(share_KK, cmap="Blues", vmin=0, vmax=1)
        for (row, col), share in np.ndenumerate(share_KK):
            if pixels_KK[row, col]:
                text = f"{100 * share:.0f}" if share >= 0.005 else "·"
                axes.text(col, row, text, ha="center", va="center", size=9, color="white" if share > 0.55 else _INK)
        labels = [f"{name}  ({int(pixels):,})" for name, pixels in zip(names, support, strict=True)]
        axes.set_yticks(range(number), labels, size=9.5)
        axes.set_xticks(range(number), names, size=9.5, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_xticks(np.arange(number + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(number + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="#e6e8eb", linewidth=0.8)
        axes.tick_params(which="both", length=0)
        for spine in axes.spines.values():
            spine.set_color("#8b949e")
        axes.set_xlabel("predicted", size=10.5, color=_SOFT, labelpad=6)
        axes.set_ylabel("true (pixels)", size=10.5, color=_SOFT, labelpad=8)
        figure.text(0.25 / width, 1 - 0.22 / height, title, size=15, weight="bold", va="top")
        figure.text(
            0.25 / width,
            1 - 0.54 / height,
            "Confusion matrix: percent of each true class by predicted class",
            size=10,
            color=_SOFT,
            va="top",
        )
        figure.savefig(path, bbox_inches="tight", pad_inches=0.3, metadata={"Software": "hpcdl"})
