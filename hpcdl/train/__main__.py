"""`python -m hpcdl.train RUN`: one rank of a training job, started by the job script's launcher."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from pathlib import Path

import torch

from hpcdl.errors import FailedError, HpcdlError
from hpcdl.rundir import RunDir
from hpcdl.settings import build, read_needs
from hpcdl.shards.manifest import load_manifest
from hpcdl.snapshot import digest
from hpcdl.train.communicator import Communicator, open_communicator
from hpcdl.train.interrupt import CONTINUE_ME
from hpcdl.train.job import DataInfo, load_job
from hpcdl.train.loop import Trainer
from hpcdl.train.settings import TrainSettings


def main(run: RunDir) -> int:
    """Train as run.yaml says; the exit code."""
    began = time.time()
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
    trainer = Trainer(run, job, manifest, build(TrainSettings, spec["settings"]), comm, read_needs(job_file))
    job_id = os.environ.get("HPCDL_JOB_ID", "by-hand")
    if comm.rank == 0:
        restart = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        run.record("started", job_id, restart=restart, ranks=comm.size, comm=spec["comm"], host=socket.gethostname())
        _introduce(trainer, comm, spec["comm"])
    done = trainer.train()
    if comm.rank == 0:
        why = "done" if done else "asked to stop"
        run.record("ended", job_id, step=trainer.at.step, why=why, seconds=round(time.time() - began, 1))
    return 0 if done else CONTINUE_ME


def _introduce(trainer: Trainer, comm: Communicator, name: str) -> None:
    numbers = {key: sum(p.numel() for p in network.parameters()) for key, network in trainer.networks.items()}
    networks = ", ".join(f"{key} with {number:,} parameters" for key, number in numbers.items())
    print(f"{networks}; {comm.size} ranks ({name}) on {trainer.device.type}; {trainer.num_steps} steps", flush=True)


def _end(code: int) -> None:
    # A rank that failed must not wait for the others in MPI_Finalize or Horovod's shutdown: they wait for it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        sys.exit(main(RunDir(Path(sys.argv[1]))))
    except HpcdlError as error:
        print(f"hpcdl: {error}", file=sys.stderr)
        _end(error.exit_code)
    except Exception:
        print(f"rank failed on {socket.gethostname()}:\n{traceback.format_exc()}", file=sys.stderr)
        _end(1)
