"""A finished (or still running) training run, and its network as a function from images to class probabilities."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hpcdl.errors import FailedError, UsageError
from hpcdl.raster.legend import ClassMap
from hpcdl.rundir import RunDir
from hpcdl.shards.manifest import Manifest, load_manifest, read_manifest
from hpcdl.train import checkpoint
from hpcdl.train.job import DataInfo, load_job

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TrainedRun:
    """What a prediction has to know of a run: its specification, its data set's manifest and one checkpoint."""

    run: RunDir
    spec: Mapping[str, Any]
    manifest: Manifest
    checkpoint: Path

    @property
    def classes(self) -> list[dict[str, Any]]:
        """The manifest's classes: index, code, name and color."""
        return list(self.manifest.entries["classes"])

    @property
    def class_map(self) -> ClassMap:
        """From codes of a label raster to dense class indices."""
        return ClassMap.from_json(self.classes)

    @property
    def num_bands(self) -> int:
        """Bands of the training images."""
        return int(self.manifest.fields["image"]["shape"][0])

    @property
    def chip_px(self) -> int:
        """Size of the training images, the larger one of height and width."""
        return max(int(size) for size in self.manifest.fields["image"]["shape"][1:])


def open_run(folder: Path, wanted: str = "last", chosen: Path | None = None) -> TrainedRun:
    """A run that can predict maps.

    Args:
        wanted: which checkpoint: last, best or the number of a step.
        chosen: the checkpoint, when another rank has chosen and verified it.

    Raises:
        UsageError: no run, not a training run, no such checkpoint, or a data set without image classes.
        FailedError: the checkpoint that is wanted is damaged.
    """
    run = RunDir(folder)
    spec = run.spec()
    if spec["kind"] != "train":
        raise UsageError(f"{run.name}: is a {spec['kind']} run; predict needs a training run, one with checkpoints")
    found = chosen or choose_checkpoint(run, wanted)
    # The run's own copy of the manifest comes first: a run outlives its data set.
    manifest = (
        read_manifest(run.data_file) if run.data_file.is_file() else load_manifest(Path(str(spec["data"]["path"])))
    )
    if manifest.digest != spec["data"]["digest"]:
        raise UsageError(f"{manifest.folder}: is not the data set that {run.name} was trained on (its digest differs)")
    if len(manifest.fields.get("image", {}).get("shape", ())) != 3 or not manifest.entries.get("classes"):
        raise UsageError(
            f"{run.name}: was trained on a data set of kind {manifest.kind!r}; predict needs images (bands, rows, columns) "
            "and classes, such as `hpcdl preprocess landcover` makes"
        )
    return TrainedRun(run, spec, manifest, found)


def choose_checkpoint(run: RunDir, wanted: str) -> Path:
    """The checkpoint that is meant, its digests verified. For `last`, damaged ones are told on stderr and passed over.

    Raises:
        UsageError: there is none, or `wanted` means nothing.
        FailedError: it is damaged.
    """
    folder, step = run.checkpoints, wanted.removeprefix("step-")
    if wanted not in ("last", "best") and not (step.isascii() and step.isdecimal()):
        raise UsageError(f"checkpoint {wanted!r} is not allowed; expected last, best or the number of a step")
    present = checkpoint.checkpoints(folder)
    if not present:
        ids = run.job_ids()
        job = f"its job is {ids[-1]}" if ids else "it was never submitted"
        raise UsageError(
            f"{run.name}: has no checkpoint yet: {job}; wait for it (hpcdl status {run.name}) or submit it again"
        )
    if wanted == "last":
        newest = checkpoint.newest_good(folder, lambda line: print(f"hpcdl: warning: {line}", file=sys.stderr))
        if newest is None:
            raise FailedError(f"{run.name}: all its checkpoints are damaged; submit it again")
        return newest
    if wanted == "best":
        found = checkpoint.pointed(folder, checkpoint.BEST)
        if found is None:
            raise UsageError(f"{run.name}: has no best checkpoint, as none was validated; leave --checkpoint out")
    else:
        found = folder / checkpoint.name_of(int(step))
        if found not in present:
            steps = ", ".join(str(checkpoint.step_of(path)) for path in present)
            raise UsageError(f"{run.name}: has no checkpoint of step {int(step)}; it has those of steps {steps}")
    checkpoint.verify(found)
    return found


class Network:
    """A run's networks, ready to predict.

    Args:
        trained: the run.
        tta: average over the eight symmetries of the square.
        prior_power: scores are lowered by this times the log of each class's share of the train pixels.
        device: where to compute.

    Raises:
        UsageError: the job file refuses its settings, or does not predict maps.
        FailedError: the checkpoint is damaged, or does not fit the job file.
    """

    def __init__(self, trained: TrainedRun, tta: bool, prior_power: float, device: torch.device) -> None:
        self.name, self.device, self.tta = trained.run.name, device, tta
        data = DataInfo.of(trained.manifest)
        job_file = trained.run.code / trained.spec["job"]
        if not job_file.is_file():
            raise UsageError(f"{job_file}: the run's job file is missing; restore the run folder")
        self._job = load_job(job_file, trained.spec["settings"], data)
        self._networks = {name: network.to(device).eval() for name, network in self._job.networks().items()}
        state = checkpoint.load(trained.checkpoint)
        weights = state.get("averaged") or state["networks"]
        for name, network in self._networks.items():
            try:
                network.load_state_dict(weights[name])
            except (KeyError, RuntimeError) as error:
                reason = str(error).splitlines()[0]
                raise FailedError(
                    f"{trained.checkpoint}: does not fit {job_file.name}: network {name!r}: {reason}"
                ) from None
        self.num_classes = len(trained.classes)
        self._offset = _prior(data.histogram, self.num_classes, prior_power).to(device)

    def probabilities(self, image_BCHW: Floats) -> Floats:
        """Class probabilities, B × K × H × W float32, of square images in the shards' units.

        Raises:
            UsageError: this architecture does not predict maps.
            FailedError: it does not give one score a class and pixel, or not finite ones.
        """
        total_BKHW: torch.Tensor | None = None
        turns = 4 if self.tta else 1
        with torch.inference_mode():
            whole_BCHW = torch.from_numpy(image_BCHW).to(self.device)
            for flip in (False, True) if self.tta else (False,):
                for turn in range(turns):
                    x_BCHW = torch.rot90(whole_BCHW.flip(-1) if flip else whole_BCHW, turn, (-2, -1)).contiguous()
                    part_BKHW = torch.rot90(self._softmax(x_BCHW), -turn, (-2, -1))
                    part_BKHW = part_BKHW.flip(-1) if flip else part_BKHW
                    total_BKHW = part_BKHW if total_BKHW is None else total_BKHW + part_BKHW
            assert total_BKHW is not None
            result: Floats = (total_BKHW / (2 * turns if self.tta else 1)).cpu().numpy()
        return result

    def _softmax(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        scores_BKHW = self._job.predict_step(self._networks, x_BCHW).float()
        wanted = (len(x_BCHW), self.num_classes, *x_BCHW.shape[-2:])
        if tuple(scores_BKHW.shape) != wanted:
            raise FailedError(
                f"{self.name}: predict_step gave scores of shape {tuple(scores_BKHW.shape)}, expected {wanted} "
                "(windows, classes, rows, columns)"
            )
        if not bool(scores_BKHW.isfinite().all()):
            raise FailedError(f"{self.name}: predict_step gave NaN or infinite scores; did the training diverge?")
        return (scores_BKHW + self._offset).softmax(dim=1)


def _prior(histogram: Sequence[int], num_classes: int, power: float) -> torch.Tensor:
    """What to add to the scores, 1 × K × 1 × 1."""
    if not power:
        return torch.zeros(1, 1, 1, 1)
    if len(histogram) != num_classes:
        raise UsageError(
            "prior_power needs the number of train pixels of each class, which this data set's manifest lacks"
        )
    # A class without train pixels counts as one pixel: it stays finite.
    counts = [max(1, number) for number in histogram]
    total = sum(counts)
    return torch.tensor([-power * math.log(number / total) for number in counts]).view(1, -1, 1, 1)
