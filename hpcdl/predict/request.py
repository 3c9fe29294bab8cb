"""What is asked for, checked and opened: nothing is computed before all of it is known to be usable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcdl import settings as setting_files
from hpcdl.errors import FailedError, UsageError
from hpcdl.predict.inputs import Inputs, open_inputs
from hpcdl.predict.network import TrainedRun, open_run
from hpcdl.predict.settings import Settings


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
    """A request, checked and opened; `owner` names the process that started it, the same on all ranks."""

    request: Request
    settings: Settings
    trained: TrainedRun
    inputs: Inputs
    out: Path
    owner: str

    @property
    def work(self) -> Path:
        """The folder in which files grow until they are finished; another prediction of the same map has its own."""
        return self.out.parent / f".{self.out.name}.{self.owner}.tmp"

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


def open_job(request: Request, owner: str, chosen: Path | None = None) -> Job:
    """Check a request and open its files; `owner` as in Job, `chosen` as in open_run.

    Raises:
        FailedError: nobody may look into the folder of `out`, or the checkpoint is damaged.
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
    try:
        is_folder = out.is_dir()
    except OSError as error:
        raise FailedError(f"{out.parent}: cannot be written: {error.strerror}; give another place with --out") from None
    if is_folder:
        raise UsageError(f"{request.out}: is a folder; give a file name, such as {out / 'map.tif'}")
    trained = open_run(Path(request.run), settings.checkpoint, chosen)
    inputs = open_inputs(settings, trained)
    sources = {*inputs.scenes.paths, *([inputs.labels.path] if inputs.labels else [])}
    if out in sources:
        raise UsageError(f"{request.out}: is one of the inputs; give the map another name")
    return Job(request, settings, trained, inputs, out, owner)
