"""Scenes and runs whose map is known beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml
from torch import nn

from hpcdl.predict.__main__ import main
from hpcdl.shards.manifest import build_manifest, save_manifest
from hpcdl.train import checkpoint
from tests.generators import IMAGE_CORNER, UTM, image_affine, write_raster

CODES = (11, 42, 81)
CLASSES = [
    {"index": 0, "code": 11, "name": "Open Water", "color": [70, 107, 159]},
    {"index": 1, "code": 42, "name": "Evergreen Forest", "color": [28, 95, 44]},
    {"index": 2, "code": 81, "name": "Pasture/Hay", "color": [220, 217, 57]},
]
SIZE = (100, 130)
NODATA_PX = 12


def truth(height: int = SIZE[0], width: int = SIZE[1]) -> np.ndarray:
    """Class indices in patches of 7 pixels."""
    return np.kron(
        np.random.default_rng(3).integers(0, 3, (height // 7 + 1, width // 7 + 1)), np.ones((7, 7), int)
    )[:height, :width].astype(np.uint8)  # fmt: skip


def write_scene(folder: Path, indices_HW: np.ndarray, bands: int = 2) -> Path:
    """An image whose first band holds 100 · (class + 1), without data in its north-west corner."""
    image_CHW = np.stack([100 * (indices_HW.astype(np.uint16) + 1)] * bands)
    image_CHW[:, :NODATA_PX, :NODATA_PX] = 0
    return write_raster(folder / "scene.tif", image_CHW, image_affine(), UTM, nodata=0)


def moved(shift_px: float) -> rasterio.Affine:
    """The image's pixels, some pixels further east and south."""
    return image_affine(corner=(IMAGE_CORNER[0] + 30 * shift_px, IMAGE_CORNER[1] - 30 * shift_px))


def write_labels(folder: Path, indices_HW: np.ndarray, shift_px: int = 0) -> Path:
    """Codes on the image's pixels, moved east and south."""
    affine = moved(shift_px)
    return write_raster(folder / "labels.tif", np.array(CODES, np.uint8)[indices_HW][None], affine, UTM, nodata=255)


def grid_entry(shift_px: float = 0.0) -> dict[str, Any]:
    """The manifest's grid: the image's pixels, moved."""
    affine = moved(shift_px)
    wkt = rasterio.CRS.from_string(UTM).to_wkt()
    return {"crs": wkt, "transform": list(affine)[:6], "height": SIZE[0], "width": SIZE[1], "chip_px": 16}


def write_checkpoint(run: Path, step: int, bands: int = 2) -> Path:
    """A checkpoint of the tiny job, with random weights that depend on the step."""
    generator = torch.Generator().manual_seed(step)
    network = nn.Conv2d(bands, 3, 9, padding=4)
    state = {name: 0.1 * torch.randn(value.shape, generator=generator) for name, value in network.state_dict().items()}
    content = {"networks": {"conv": state}, "averaged": {}}
    checkpoint.write(run / "checkpoints", step, content, [checkpoint.to_bytes({})], lambda: None)
    return run / "checkpoints" / checkpoint.name_of(step)


def write_run(folder: Path, mode: str = "pixels", extra: dict[str, Any] | None = None, bands: int = 2) -> Path:
    """A run folder with one checkpoint of the tiny job."""
    fields = {
        "image": {"dtype": "uint16", "shape": [bands, 16, 16], "fill": 0},
        "label": {"dtype": "uint8", "shape": [16, 16]},
    }
    statistics = {
        "image": {"mean": [200.0] * bands, "std": [80.0] * bands, "count": [1] * bands},
        "label": {"histogram": [900, 90, 10]},
    }
    regions = {"train": [[0, 0, 100, 65]], "test": [[0, 65, 100, 130]]}
    own = {"classes": CLASSES, "statistics": statistics, "grid": grid_entry(), "regions": regions, **(extra or {})}
    own = {key: value for key, value in own.items() if value is not None}
    splits = {"train": {"num_samples": 0, "num_dropped": 0, "shards": []}}
    manifest = build_manifest("landcover", fields, splits, own)
    (folder / "code").mkdir(parents=True)
    save_manifest(folder, manifest).rename(folder / "data.json")
    (folder / "code/tiny_job.py").write_text(Path(__file__).with_name("tiny_job.py").read_text())
    spec = {
        "kind": "train", "name": folder.name, "job": "tiny_job.py", "settings": {"mode": mode},
        "data": {"path": str(folder / "gone"), "digest": manifest["digest"]},
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(spec))
    write_checkpoint(folder, 10, bands)
    return folder


@dataclass(frozen=True)
class Case:
    """A folder with a scene, its labels and a run."""

    folder: Path
    scene: Path
    labels: Path
    run: Path
    capture: pytest.CaptureFixture[str] = field(repr=False)

    def request(self, out: str = "out/map.tif", json_output: bool = False, **settings: Any) -> Path:
        """A request's file; the scene is given unless other images are."""
        values = {"images": [str(self.scene)], **settings}
        body = {"run": str(self.run), "out": str(self.folder / out), "settings": values, "json": json_output}
        path = self.folder / "request.json"
        path.write_text(json.dumps(body))
        return path

    def predict(self, **arguments: Any) -> tuple[int, str, str]:
        """Run a request in this process: exit code, stdout, stderr."""
        self.capture.readouterr()
        code = main(self.request(**arguments))
        return code, *self.capture.readouterr()

    def map(self, out: str = "out/map.tif") -> np.ndarray:
        """The codes that were written."""
        with rasterio.open(self.folder / out) as dataset:
            codes_HW: np.ndarray = dataset.read(1)
            return codes_HW

    def expected(self) -> np.ndarray:
        """The scene's true codes, 0 where it has no data."""
        codes_HW = np.array(CODES, np.uint8)[truth()]
        codes_HW[:NODATA_PX, :NODATA_PX] = 0
        return codes_HW


@pytest.fixture
def make_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Case]:
    """A function that makes a case; arguments go to write_run."""

    def make(mode: str = "pixels", extra: dict[str, Any] | None = None) -> Case:
        scene, labels = write_scene(tmp_path, truth()), write_labels(tmp_path, truth())
        return Case(tmp_path, scene, labels, write_run(tmp_path / "runs/tiny", mode, extra), capsys)

    return make
