"""`python -m hpcdl.train RUN`: the training of one rank, started by the agent that watches it (or by hand)."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from hpcdl.attempts import CONTINUE_ME, attempt_of
from hpcdl.errors import FailedError, HpcdlError
from hpcdl.lock import still_ours
from hpcdl.pulse import VARIABLE, Blame, own_pulse
from hpcdl.ranks import node_name, own_rank
from hpcdl.rundir import RunDir
from hpcdl.settings import build, read_needs
from hpcdl.shards.manifest import Manifest, load_manifest
from hpcdl.snapshot import digest
from hpcdl.train.communicator import Communicator, PeerLostError, open_communicator
from hpcdl.train.guards import AgreedError
from hpcdl.train.job import DataInfo, load_job
from hpcdl.train.loop import Trainer
from hpcdl.train.settings import TrainSettings
from hpcdl.train.stage import staged

TELL_S = 3.0
"""The agent tells a failure within a fraction of this."""

LAST_WRITE_S = 10.0
"""A checkpoint that is being written when the training fails may be finished for so long: it is work that is not lost."""


def main(run: RunDir, began: float) -> int:
    """Train as run.yaml says; the exit code."""
    spec = run.spec()
    resources = spec["resources"]
    torch.set_num_threads(resources["cpus_per_task"])
    comm = open_communicator(spec["comm"], resources["nodes"] * resources["ntasks_per_node"])
    if torch.cuda.is_available():
        torch.cuda.set_device(comm.local_rank % torch.cuda.device_count())
    job_file = run.code / spec["job"]
    if digest(job_file) != spec["code_sha256"]:
        raise FailedError(f"{job_file}: was changed after the run was submitted; submit a new run with the new code")
    manifest = load_manifest(Path(spec["data"]["path"]))
    if manifest.digest != spec["data"]["digest"]:
        raise FailedError(f"{manifest.folder}: is not the data set that was submitted (its digest changed)")
    job = load_job(job_file, spec["settings"], DataInfo.of(manifest))
    attempt, job_id = os.environ.get("HPCDL_ATTEMPT"), os.environ.get("HPCDL_JOB_ID", "by-hand")

    def permit() -> None:
        if attempt is not None and not still_ours(run, attempt):
            raise FailedError(f"{run.name}: another job has taken this run over; this one writes no more checkpoints")

    settings = build(TrainSettings, spec["settings"])
    with contextlib.ExitStack() as until_end:
        if settings.stage:
            note = attempt_of(run, attempt) if attempt else None
            copies = staged(manifest, ("train", "val"), spec.get("node_scratch"), f"{run.path}:{attempt}", note, comm)
            manifest, taken = until_end.enter_context(copies)
            if comm.rank == 0:
                _tell_staged(manifest, taken)
        trainer = Trainer(
            run, job, manifest, settings, comm, read_needs(job_file),
            permit=permit, stop_at=spec.get("stop_at", 0), began=began,
        )  # fmt: skip
        if comm.rank == 0:
            _introduce(trainer, comm, spec["comm"])
        try:
            return _train(run, trainer, spec, attempt, job_id, began)
        except Exception as error:
            _tell(error)  # first: with a rank gone, MPI may end this process at any moment
            trainer.saver.give_up(LAST_WRITE_S)
            raise


def _train(run: RunDir, trainer: Trainer, spec: dict[str, Any], attempt: str | None, job_id: str, began: float) -> int:
    comm, step = trainer.comm, trainer.resume()
    if comm.rank == 0:
        run.record("started", job_id, attempt=attempt, step=step, ranks=comm.size, comm=spec["comm"], host=node_name())
    done = trainer.train()
    if comm.rank == 0:
        why = "done" if done else "asked to stop"
        seconds = round(time.time() - began, 1)
        run.record("ended", job_id, attempt=attempt, step=trainer.state.at.step, why=why, seconds=seconds)
    return 0 if done else CONTINUE_ME


def _tell_staged(manifest: Manifest, taken: dict[str, Any]) -> None:
    if taken["staged"]:
        read, seconds, nodes = taken["read_bytes"] / 1e6, taken["seconds"], taken["num_nodes"]
        print(f"staged to {manifest.folder}: {read:.1f} MB read for {nodes} node(s) in {seconds:.1f} s", flush=True)


def _introduce(trainer: Trainer, comm: Communicator, name: str) -> None:
    networks = trainer.state.networks
    numbers = {key: sum(p.numel() for p in network.parameters()) for key, network in networks.items()}
    told = ", ".join(f"{key} with {number:,} parameters" for key, number in numbers.items())
    print(f"{told}; {comm.size} ranks ({name}) on {trainer.state.device.type}; {trainer.num_steps} steps", flush=True)


def _tell(error: Exception) -> None:
    """Tell the agent, or the log where there is none, what went wrong; once."""
    if getattr(error, "told", False):
        return
    error.told = True  # type: ignore[attr-defined]
    blame: Blame = "own"
    if isinstance(error, AgreedError):
        blame = "all" if own_rank() == 0 else "peer"
    elif isinstance(error, PeerLostError):
        blame = "peer"
    line = str(error) if isinstance(error, HpcdlError) else f"{type(error).__name__}: {error}".strip()
    text = "" if isinstance(error, HpcdlError) else "".join(traceback.format_exception(error))
    if VARIABLE in os.environ:
        own_pulse().fail(blame, line, text)
        if blame != "peer" or isinstance(error, AgreedError):
            own_pulse().wait_taken(TELL_S)  # also ranks that leave the telling to rank 0: their end would disturb it
    else:
        print(f"{text}hpcdl: {line}", file=sys.stderr)


def _fail(error: Exception) -> None:
    """Tell, and end without waiting for anybody."""
    _tell(error)
    sys.stdout.flush()
    sys.stderr.flush()
    # A rank that failed must not wait for the others in MPI_Finalize or Horovod's shutdown: they wait for it.
    os._exit(error.exit_code if isinstance(error, HpcdlError) else 1)


if __name__ == "__main__":
    # The agent knows better: importing PyTorch takes longer than all the rest.
    _began = float(os.environ.get("HPCDL_STARTED", time.time()))
    try:
        sys.exit(main(RunDir(Path(sys.argv[1])), _began))
    except Exception as _error:
        _fail(_error)
