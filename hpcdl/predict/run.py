"""One prediction from request to files: the order of things, and who of the ranks does what."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from hpcdl import __version__
from hpcdl import settings as setting_files
from hpcdl.console import err
from hpcdl.errors import FailedError, UsageError
from hpcdl.predict import geotiff
from hpcdl.predict.blend import NO_CLASS, Tiling, default_window, predict_strip
from hpcdl.predict.inputs import Inputs, open_inputs
from hpcdl.predict.network import Network, TrainedRun, open_run
from hpcdl.predict.parts import PartFile, read_part
from hpcdl.predict.ranks import Ranks
from hpcdl.predict.settings import Settings
from hpcdl.predict.windows import Strip, cut_strips


@dataclass(frozen=True)
class Request:
    """What `hpcdl predict` hands over, as JSON.

    Attributes:
        run: the run's folder.
        out: the map's file; everything else is written beside it under the same stem.
        settings: values by name, as the command line gave them.
        threads: of one rank on the CPU, None for PyTorch's choice.
        command: the command line, for the map's metadata.
        json: print one JSON document instead of tables and paths.
    """

    run: str
    out: str
    settings: Mapping[str, Any]
    threads: int | None = None
    command: tuple[str, ...] = field(default=())
    json: bool = False


@dataclass(frozen=True)
class Job:
    """A request, checked and opened."""

    request: Request
    settings: Settings
    trained: TrainedRun
    inputs: Inputs
    out: Path

    @property
    def work(self) -> Path:
        """The folder in which files grow until they are finished."""
        return self.out.parent / f".{self.out.name}.tmp"

    def beside(self, ending: str) -> str:
        """Name of an output: the map's stem and another ending."""
        return self.out.stem + ending


def read_request(path: Path) -> Request:
    """The request in a JSON file.

    Raises:
        UsageError: not readable, or with other keys than Request has.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        return Request(**{**body, "command": tuple(body.get("command", ()))})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not a request for prediction: {error}") from None


def open_job(request: Request) -> Job:
    """Check a request and open its files.

    Raises:
        UsageError: a setting, the run, an image or the labels are not usable; or `out` is not a .tif in a folder.
    """
    known = setting_files.read_settings(Path(__file__).with_name("settings.py"))
    given = dict(request.settings)
    if not given.get("images"):
        raise UsageError("no image is given; name GeoTIFF files or globs, such as --images 'landsat_b*.tif'")
    # A list keeps its items: text would be cut at commas, which a file name may hold.
    given["images"] = [given["images"]] if isinstance(given["images"], str) else list(given["images"])
    values = setting_files.resolve(known, [("the request", given)], "hpcdl predict")
    settings = setting_files.build(Settings, values)
    out = Path(request.out).absolute()
    if out.suffix.lower() not in {".tif", ".tiff"}:
        raise UsageError(f"{request.out}: the map is a GeoTIFF; give a file name that ends in .tif")
    if out.is_dir():
        raise UsageError(f"{request.out}: is a folder; give a file name, such as {out / 'map.tif'}")
    trained = open_run(Path(request.run))
    inputs = open_inputs(settings, trained)
    sources = {*inputs.scenes.paths, *([inputs.labels.path] if inputs.labels else [])}
    if out in sources:
        raise UsageError(f"{request.out}: is one of the inputs; give the map another name")
    return Job(request, settings, trained, inputs, out)


def write_rasters(job: Job, ranks: Ranks) -> list[Path]:
    """Predict all pixels, each rank a strip of them, and put them together on rank 0.

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
    if ranks.rank == 0:
        shutil.rmtree(job.work, ignore_errors=True)
        job.work.mkdir(parents=True)
    ranks.wait()
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
    window = settings.window_px
    if window is None:
        # No larger than the scene needs: a small one would be mostly padding.
        window = min(default_window(job.trained.chip_px), default_window_of_scene(max(target.height, target.width)))
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


def publish(work: Path, folder: Path, names: list[str]) -> list[Path]:
    """Move finished files into place, each in one step, and remove the work folder.

    Raises:
        FailedError: a place cannot be written.
    """
    for name in names:
        try:
            (work / name).replace(folder / name)
        except OSError as error:
            raise FailedError(f"{folder / name}: cannot be written: {error.strerror}") from None
    shutil.rmtree(work, ignore_errors=True)
    return [folder / name for name in names]
