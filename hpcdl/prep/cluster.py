"""The Dask workers of a run: processes of this machine, or the tasks that srun or mpirun started."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
from distributed import Client, LocalCluster, wait

from hpcdl.errors import FailedError

# Where a launcher writes rank and number of tasks. Open MPI comes first: its daemons may themselves be started by srun,
# whose variables the ranks then inherit. SLURM_NTASKS is set in a batch script too, where nothing was launched.
_LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("PMI_RANK", "PMI_SIZE"),
)
_LAUNCH_NAMES = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
_START_SECONDS = 120
# Numbers of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_WARM_SECONDS = 10
# Started before it is known how many there is work for.
_FIRST_WORKERS = 2
THREADS = 2
"""Threads of a worker: one makes a shard, the other writes and digests the one before."""


@dataclass(frozen=True)
class Launch:
    """This process among those that a launcher started; `name` is the same for all of them and no other launch."""

    rank: int
    size: int
    name: str


def find_launch(environment: Mapping[str, str]) -> Launch | None:
    """The launch that this process belongs to, None when it was started on its own."""
    for rank_name, size_name in _LAUNCHERS:
        size = environment.get(size_name, "")
        if size.isdecimal() and int(size) > 1 and environment.get(rank_name, "").isdecimal():
            parts = [environment[name] for name in _LAUNCH_NAMES if environment.get(name)]
            return Launch(int(environment[rank_name]), int(size), "-".join(parts) or str(os.getppid()))
    return None


@contextlib.contextmanager
def join_launch(folder: Path) -> Iterator[Client | None]:
    """A client when srun or mpirun started several tasks, None when this process is on its own.

    Of three or more tasks, rank 0 schedules, rank 1 gets the client and the others work: those do not return from here,
    they exit when the client is done. Two tasks are too few for that: the second exits, the first goes on alone.

    Args:
        folder: a folder that all tasks see, for the scheduler's address.

    Raises:
        FailedError: no worker has come up in two minutes.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is told in our own words
    launch = find_launch(os.environ)
    if launch is not None and launch.size > 2:
        with _ranks(launch, folder) as client:
            yield client
    elif launch is not None and launch.rank > 0:
        sys.exit(0)
    else:
        yield None


class Workers:
    """The workers of a run, being started while the caller does something else.

    Args:
        joined: the client of a launch, None to start processes of this machine.
        most: processes of this machine, at most.
        prepare: called in each of the first workers as soon as it is up: imports take as long as starting does.
    """

    def __init__(self, joined: Client | None, most: int, prepare: Callable[[], Any]) -> None:
        self._joined, self._most, self._prepare = joined, most, prepare
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Workers:
        self._starter = self._stack.enter_context(ThreadPoolExecutor(1, "hpcdl-start-workers"))
        self._starting = self._starter.submit(self._start)
        return self

    def __exit__(self, *raised: object) -> None:
        with contextlib.suppress(Exception):  # it is raised where the client is asked for
            self._starting.result()
            # A worker that is ended while it imports says so at length.
            wait(self._warmed, timeout=_WARM_SECONDS)
        self._stack.close()

    def client(self, wanted: int) -> Client:
        """The client, with as many workers as are useful.

        Raises:
            FailedError: they cannot be started.
        """
        client = self._starting.result()
        if self._joined is None and wanted > _FIRST_WORKERS:
            number = min(wanted, self._most)
            client.cluster.scale(number)
            # Those that are up begin; one that dies while it starts is started again.
            with contextlib.suppress(TimeoutError):
                client.wait_for_workers(number, timeout=_START_SECONDS)
        return client

    def _start(self) -> Client:
        client = self._joined
        if client is None:
            try:
                client = self._stack.enter_context(_local_workers(min(self._most, _FIRST_WORKERS)))
            except (RuntimeError, OSError, TimeoutError) as error:
                raise _not_started(error) from None
        self._warmed = client.map(_call, [self._prepare] * _FIRST_WORKERS, pure=False)
        return client


def _not_started(error: BaseException) -> FailedError:
    return FailedError(
        f"the workers could not be started: {' '.join(str(error).split())}; finished shards stay, so run the same command again"
    )


def _call(function: Callable[[], Any]) -> None:
    function()


def keep_memory() -> None:
    """Let the allocator use freed memory again: Dask makes it give all back at once, and fresh pages cost more than work."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 256 << 20), (_M_ARENA_MAX, 1)):
            mallopt(parameter, value)


@contextlib.contextmanager
def _local_workers(workers: int) -> Iterator[Client]:
    """A client with that many worker processes on this machine."""
    with (
        tempfile.TemporaryDirectory(prefix="hpcdl-dask-") as scratch,
        LocalCluster(
            n_workers=workers,
            processes=True,
            threads_per_worker=THREADS,
            # None would still try port 8787, and warn when a neighbour has it.
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            local_directory=scratch,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        contextlib.closing(Client(cluster)) as client,
    ):
        yield client


@contextlib.contextmanager
def _ranks(launch: Launch, folder: Path) -> Iterator[Client]:
    from dask_jobqueue.runner import BaseRunner
    from dask_jobqueue.slurm import SLURMRunner

    class RankRunner(SLURMRunner):  # type: ignore[misc]
        """dask-jobqueue's runner for srun, told its rank, so that mpirun can start it as well."""

        def __init__(self, launch: Launch, scheduler_file: Path) -> None:
            self.proc_id, self.world_size, self.job_id = launch.rank, launch.size, 0
            self.n_workers = launch.size
            self.scheduler_file = scheduler_file
            options: dict[str, Any] = {"scheduler_file": str(scheduler_file)}
            BaseRunner.__init__(
                self,
                scheduler_options={**options, "dashboard": False, "dashboard_address": ":0"},
                worker_options={**options, "nthreads": THREADS, "memory_limit": 0},
            )

    scheduler_folder = folder / ".dask"
    scheduler_folder.mkdir(parents=True, exist_ok=True)
    scheduler_file = scheduler_folder / f"scheduler-{launch.name}.json"
    with tempfile.TemporaryDirectory(prefix="hpcdl-dask-") as scratch:
        dask.config.set({"temporary-directory": scratch})
        try:
            with RankRunner(launch, scheduler_file) as runner:
                # dask-jobqueue makes Ctrl-C an exit with code 0; here it is an interruption again.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                with Client(runner) as client:
                    _await_workers(client)
                    yield client
        finally:
            if launch.rank == 1:
                scheduler_file.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    scheduler_folder.rmdir()


def _await_workers(client: Client) -> None:
    try:
        client.wait_for_workers(1, timeout=_START_SECONDS)
    except TimeoutError:
        raise FailedError(
            f"no Dask worker has come up in {_START_SECONDS} s; see the log for what the other tasks say"
        ) from None
