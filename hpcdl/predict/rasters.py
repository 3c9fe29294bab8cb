"""The rasters of a prediction: each rank predicts a strip of rows, rank 0 puts them together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.progress import Progress

from hpcdl import __version__
from hpcdl.console import err
from hpcdl.errors import UsageError
from hpcdl.predict import geotiff
from hpcdl.predict.blend import NO_CLASS, Tiling, predict_strip
from hpcdl.predict.network import Network
from hpcdl.predict.parts import PartFile, read_part
from hpcdl.predict.ranks import Ranks
from hpcdl.predict.request import Job
from hpcdl.predict.windows import Strip, cut_strips, default_window


def write_rasters(job: Job, ranks: Ranks) -> list[Path]:
    """Predict all pixels, each rank a strip of them, and put them together on rank 0; the work folder is there.

    Returns:
        The finished files, in the work folder: the map, and the probabilities when asked for. Empty on other ranks.

    Raises:
        UsageError, FailedError: as Network and the readers of images.
    """
    device = _device(ranks, job.request.threads)
    network = Network(job.trained, job.settings.tta, job.settings.prior_power, device)
    tiling = _tiling(job)
    strips = cut_strips(tiling.grid.height, tiling.tops, tiling.window_px, ranks.size)
    codes = geotiff.ClassCodes(job.trained.classes)
    sinks: list[geotiff.RowSink]
    if ranks.rank == 0:
        sinks = list(_create(job))
    else:
        sinks = [PartFile(job.work / f"{name}.{ranks.rank}") for name, _, _ in _products(job)]
    strip = strips[ranks.rank]
    with _progress(len(strip.tops) if ranks.rank == 0 else 0) as advance:
        for rows in predict_strip(tiling, strip, network.num_classes, network.probabilities, advance):
            sinks[0].append(codes.encode(rows.indices_HW)[None])
            if job.settings.probabilities:
                valid_HW = rows.indices_HW != NO_CLASS
                sinks[1].append(geotiff.encode_probabilities(rows.probabilities_KHW, valid_HW))
    if ranks.rank > 0:
        for sink in sinks:
            sink.close()
    ranks.wait()
    return _merge(job, sinks, strips) if ranks.rank == 0 else []


def _merge(job: Job, sinks: list[geotiff.RowSink], strips: list[Strip]) -> list[Path]:
    """Append the other ranks' rows to rank 0's files and finish them."""
    for sink, (name, num_bands, dtype) in zip(sinks, _products(job), strict=True):
        for rank, strip in enumerate(strips[1:], start=1):
            part = job.work / f"{name}.{rank}"
            num_rows = strip.row1 - strip.row0
            for pixels in read_part(part, num_rows, num_bands, job.inputs.target.width, dtype, geotiff.TILE_PX):
                sink.append(pixels)
            part.unlink()
        sink.close()
    return [job.work / name for name, _, _ in _products(job)]


def _products(job: Job) -> list[tuple[str, int, str]]:
    """Name, number of bands and pixel type of each raster."""
    classes = job.trained.classes
    products = [(job.out.name, 1, geotiff.ClassCodes(classes).dtype)]
    if job.settings.probabilities:
        products.append((job.beside(".probabilities.tif"), len(classes), "uint8"))
    return products


def _create(job: Job) -> Iterator[geotiff.GeoTiff]:
    tags = {
        "TIFFTAG_SOFTWARE": f"hpcdl {__version__}",
        "hpcdl_run": job.trained.run.name,
        "hpcdl_checkpoint": job.trained.checkpoint.name,
        "hpcdl_data": job.trained.manifest.digest,
        "hpcdl_command": " ".join(job.request.command),
    }
    makers = (geotiff.create_map, geotiff.create_probabilities)
    for (name, _, _), maker in zip(_products(job), makers, strict=False):
        yield maker(job.work / name, job.inputs.target, job.trained.classes, tags)


def _tiling(job: Job) -> Tiling:
    target, settings = job.inputs.target, job.settings
    window = settings.window_px or default_window(job.trained.chip_px, target.height, target.width)
    fill = job.trained.manifest.fields["image"].get("fill")
    return Tiling(
        scenes=job.inputs.scenes,
        grid=target,
        resampling=settings.resampling,
        window_px=window,
        overlap=settings.overlap,
        batch_size=settings.batch_size,
        fill=float(job.inputs.scenes.fill if fill is None else fill),
    )


def _device(ranks: Ranks, threads: int | None) -> torch.device:
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads is {threads}; it must be at least 1")
        torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", ranks.local_rank % torch.cuda.device_count())


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A function to call after each row of windows; draws a bar when somebody watches."""
    if not total or not err().is_terminal:
        yield lambda: None
        return
    with Progress(console=err(), transient=True) as bar:
        task = bar.add_task("Predicting", total=total)
        yield lambda: bar.advance(task)
