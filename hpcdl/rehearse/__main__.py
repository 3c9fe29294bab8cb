"""`python -m hpcdl.rehearse RUN LAUNCHER…`: the rehearsal itself, in its job, on the nodes that the whole run would have.

Trains 2 n steps straight on; then n steps, an interruption, and n more; and compares. Both are trainings like any
other, in run folders of their own inside the rehearsal's, started by the cluster's launcher.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from hpcdl.attempts import attempt_of
from hpcdl.errors import FailedError, HpcdlError
from hpcdl.lock import release_lock, take_lock
from hpcdl.rehearse.estimate import Measured, document, forecast, rows
from hpcdl.resources import parse_time
from hpcdl.rundir import RunDir, read_lines
from hpcdl.train import checkpoint
from hpcdl.watch.launch import launch


def main(run: RunDir, launcher: list[str]) -> int:
    """Rehearse; the exit code: 0 when the interrupted training came to the same weights."""
    spec = run.spec()
    steps, began = int(spec["rehearsal"]["steps"]), time.time()
    straight, parts = _stage(run, spec, "straight"), _stage(run, spec, "interrupted")
    first = _train(straight, 2 * steps, launcher, 0)
    _train(parts, steps, launcher, 0)
    resumed = _train(parts, 2 * steps, launcher, 1)
    measured = _measure(straight, parts, first, resumed, spec)
    resources, limits = spec["resources"], spec["rehearsal"].get("longest")
    wanted = forecast(measured, spec["settings"], resources["nodes"], parse_time(limits) if limits else float("inf"))
    result = document(measured, wanted) | {"steps": steps, "seconds": round(time.time() - began, 1)}
    (run.path / "rehearsal.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    tasks = resources["nodes"] * resources["ntasks_per_node"]
    for what, how_much in rows(measured, wanted, resources["nodes"], tasks):
        print(f"{what:24} {how_much}")
    return 0 if measured.exact else 1


def _stage(run: RunDir, spec: dict[str, Any], name: str) -> RunDir:
    """A training run's folder inside the rehearsal's."""
    stage = RunDir(run.path / name)
    shutil.rmtree(stage.path, ignore_errors=True)
    stage.path.mkdir()
    stage.code.symlink_to(Path("..") / "code", target_is_directory=True)
    return stage


def _train(stage: RunDir, stop_at: int, launcher: list[str], number: int) -> float:
    """Train until `stop_at`; seconds from the launcher's start to the end of its first step.

    Raises:
        FailedError: it did not get there.
    """
    spec = RunDir(stage.path.parent).spec()
    every = max(1, min(spec["settings"]["log_every"], stop_at // 4))
    settings = {**spec["settings"], "log_every": every}
    entry = {**spec, "kind": "train", "name": stage.name, "settings": settings, "stop_at": stop_at}
    stage.spec_file.write_text(yaml.safe_dump(entry, sort_keys=False, allow_unicode=True), encoding="utf-8")
    attempt = attempt_of(stage, f"{os.environ.get('HPCDL_JOB_ID', 'by-hand')}-{number}")
    lock = take_lock(stage, attempt.name, attempt.name, 0, lambda job_id: None)
    began = time.time()
    try:
        code = launch([*launcher, str(stage.path)], attempt)
    finally:
        release_lock(stage, lock)
    starts = [line for line in read_lines(stage.metrics_file) if line["split"] == "startup"]
    reached = max((line["step"] for line in read_lines(stage.metrics_file)), default=0)
    if code or reached < min(stop_at, _num_steps(stage)):
        raise FailedError(f"the rehearsal's training ended with code {code} at step {reached} of {stop_at}; see above")
    return float(starts[-1]["time"]) - began


def _num_steps(stage: RunDir) -> int:
    lines = [line["num_steps"] for line in read_lines(stage.metrics_file) if line["split"] == "train"]
    return int(lines[-1]) if lines else 1


def _measure(straight: RunDir, parts: RunDir, start_s: float, resume_s: float, spec: dict[str, Any]) -> Measured:
    digests = []
    for stage in (straight, parts):
        found = checkpoint.newest_good(stage.checkpoints, print)
        if found is None:
            raise FailedError(f"{stage.checkpoints}: no good checkpoint after the rehearsal")
        digests.append((found.name, checkpoint.weights_digest(checkpoint.load(found))))
    lines = read_lines(straight.metrics_file)
    train = [line for line in lines if line["split"] == "train"]
    saved = [line for line in [*lines, *read_lines(parts.metrics_file)] if line["split"] == "checkpoint"]
    validations = [line["seconds"] for line in lines if line["split"] == "val"]
    batch = spec["settings"]["batch_size"]
    warm = train[len(train) // 2 :]
    step_s = statistics.median(batch / line["samples_per_s"] for line in warm)
    per_epoch = -(-spec["rehearsal"]["num_train"] // batch)
    forward = step_s / 3 * -(-spec["rehearsal"]["num_val"] // batch)
    measured = Measured(
        exact=digests[0] == digests[1],
        start_s=start_s,
        resume_s=resume_s,
        step_s=step_s,
        stall_s=statistics.median(line["stall_s"] for line in saved),
        write_s=statistics.median(line["write_s"] for line in saved),
        checkpoint_mb=saved[-1]["num_bytes"] / 1e6,
        validation_s=statistics.median(validations) if validations else forward,
        validation_measured=bool(validations) or not spec["rehearsal"]["num_val"],
        num_steps=train[-1]["num_steps"],
        batches_per_epoch=per_epoch,
    )
    return replace(measured, validation_s=0.0) if not spec["rehearsal"]["num_val"] else measured


if __name__ == "__main__":
    try:
        sys.exit(main(RunDir(Path(sys.argv[1])), sys.argv[2:]))
    except HpcdlError as _error:
        print(f"hpcdl: {_error}", file=sys.stderr)
        sys.exit(_error.exit_code)
