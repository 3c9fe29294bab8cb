"""The processes that srun or mpirun started for one prediction; mpi4py is imported only when there are several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpcdl.errors import FailedError

# Open MPI comes first: under mpirun inside a Slurm job both are set. SLURM_NTASKS is set in a batch script too, where
# nothing was launched; a step's own count is not.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMI_SIZE")
_LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MPI_LOCALRANKID")


@dataclass(frozen=True)
class Ranks:
    """This process is `rank` of `size`, and the `local_rank`-th on its node; `comm` is MPI's, None for one process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    comm: Any = None

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on all ranks."""
        return value if self.comm is None else self.comm.bcast(value, root=0)

    def wait(self) -> None:
        """Return when all ranks have come here."""
        if self.comm is not None:
            self.comm.Barrier()

    def abort(self, code: int) -> None:
        """End all ranks at once: those that wait for this one would wait for ever. Returns for one process."""
        if self.comm is not None:
            self.comm.Abort(code)


def join_ranks(environment: Mapping[str, str]) -> Ranks:
    """The ranks of this launch.

    Raises:
        FailedError: several tasks were started that do not know each other, or mpi4py does not work here.
    """
    wanted = next((int(environment[name]) for name in _SIZES if environment.get(name, "").isdecimal()), 1)
    if wanted == 1:
        return Ranks()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: the wheel found no MPI library to load
        raise FailedError(
            f"{wanted} tasks were started, but mpi4py does not work here ({error}); run one task, or load the site's MPI"
        ) from None
    comm = MPI.COMM_WORLD
    if comm.size != wanted:
        library = MPI.Get_library_version().split(",")[0].strip()
        raise FailedError(
            f"{wanted} tasks were started, but this one sees {comm.size}: the launcher does not fit the MPI that mpi4py "
            f"loads ({library}); try srun --mpi=pmix, or that MPI's mpirun"
        )
    local = next((int(environment[name]) for name in _LOCAL_RANKS if environment.get(name, "").isdecimal()), comm.rank)
    return Ranks(comm.rank, comm.size, local, comm)
