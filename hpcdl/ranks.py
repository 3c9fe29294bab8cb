"""Which rank a process is, as the variables of its launcher tell (Open MPI, MVAPICH, PMIx, PMI, Slurm, torchrun)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID", "RANK")
SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS", "WORLD_SIZE")
LOCAL_VARIABLES = (
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "SLURM_LOCALID",
    "MPI_LOCALRANKID",
    "LOCAL_RANK",
)


def own_rank() -> int:
    """This process's rank; 0 when no launcher started it."""
    return _first(RANK_VARIABLES, 0)


def own_size() -> int:
    """Number of ranks; 1 when no launcher started this process."""
    return _first(SIZE_VARIABLES, 1)


def own_local_rank() -> int:
    """This process's number on its node."""
    return _first(LOCAL_VARIABLES, 0)


def node_name() -> str:
    """This machine's name, as Slurm knows it where it runs under Slurm, else without its domain."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]


def _first(names: Iterable[str], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)
