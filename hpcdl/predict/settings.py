"""What `hpcdl predict` accepts; read with `ast` to make the command line, so the defaults here are literals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from hpcdl.resources import Range

FILES = ("images", "labels", "quality")
"""Settings that name files or globs: checked before a job is queued."""


@dataclass(frozen=True)
class Settings:
    """Which scene to map, on which pixels, and how."""

    images: tuple[str, ...]
    """Image files or globs, in the band order of the run's data set; files on one grid are stacked as bands"""
    checkpoint: str = "last"
    """State of the run to predict with: last (the newest), best (of the validations), or the number of a step"""
    labels: str | None = None
    """Raster of class codes to score the map against"""
    grid: Literal["auto", "image"] = "auto"
    """Pixels of the map: those of the labels, else of the run's data set (auto), or the image's own"""
    region: Literal["train", "val", "test", "all"] = "all"
    """Score only the pixels of this split of the run's data set; the map covers the whole image in any case"""
    window_px: Annotated[int, Range(8, 8192)] | None = None
    """Height and width of what the network sees at once (default: the training chip, 256 at least)"""
    overlap: Annotated[float, Range(0, 0.9)] = 0.5
    """Part of a window that it shares with its neighbour; there both fade into each other"""
    tta: bool = False
    """Average over the eight flips and quarter turns of each window: eight times the work, often a better map"""
    prior_power: Annotated[float, Range(0, 4)] = 0.0
    """Lower the scores by this times the log of each class's share in training: finds more of the rare classes (logit
    adjustment, Menon et al. 2021)"""
    probabilities: bool = False
    """Write the probability of every class as well: one band a class, in steps of 0.004"""
    resampling: Literal["nearest", "bilinear", "cubic", "cubicspline", "lanczos", "average"] = "bilinear"
    """How images are brought onto another grid; use what the data set was made with"""
    scene_by: Literal["grid", "folder"] = "grid"
    """Files on one grid, or in one folder, are the bands of one scene"""
    mosaic: Literal["first", "last", "median"] = "first"
    """Where scenes overlap: the first or the last one with data, or the median of all"""
    scale: tuple[str, ...] = ()
    """Gain and offset: GAIN,OFFSET, a name in configs/scales, or file (default: what the run's data set was made with); once
    for all scenes, or once for each"""
    quality: tuple[str, ...] = ()
    """Quality bands, files or globs, one for each scene: what they leave out has no class in the map"""
    quality_legend: str = "landsat-c2"
    """What their codes mean: a name in configs/quality, or a YAML file"""
    mask: tuple[str, ...] = ()
    """Flags of the quality bands that leave a pixel out (default: those that the legend names)"""
    image_crs: str | None = None
    """Coordinate system of images that carry none, such as EPSG:32612"""
    label_crs: str | None = None
    """Coordinate system of labels that carry none"""
    batch_size: Annotated[int, Range(1)] = 8
    """Windows that go through the network at once"""
