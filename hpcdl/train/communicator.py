"""Ranks talking to each other: Horovod (the default), torch.distributed, or nobody. The loop knows only `Communicator`."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hpcdl.errors import FailedError, UsageError
from hpcdl.train.buckets import GradientBuckets

RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID", "RANK")
SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS", "WORLD_SIZE")
LOCAL_VARIABLES = ("OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MPI_LOCALRANKID", "LOCAL_RANK")


class Reducer(ABC):
    """Sums one network's gradients over the ranks while backward runs, then lets its optimizer step.

    Attributes:
        optimizer: the one that steps and holds the state; Horovod's is another object than the one it was made from.
    """

    optimizer: Optimizer

    @abstractmethod
    def finish(self) -> None:
        """Wait until every gradient holds the sum over all ranks."""

    @abstractmethod
    def step(self) -> None:
        """One step of the optimizer on the gradients as they are now."""


class Communicator(ABC):
    """`size` processes; this one is `rank`, and the `local_rank`-th on its node."""

    rank = 0
    size = 1
    local_rank = 0

    @abstractmethod
    def reducer(self, optimizer: Optimizer, network: nn.Module, accumulate: int, fp16: bool) -> Reducer:
        """A reducer of one network's gradients, each summed after `accumulate` backward passes."""

    @abstractmethod
    def sum_async(self, tensor: torch.Tensor, name: str) -> Callable[[], torch.Tensor]:
        """Begin to sum a tensor over the ranks; the call that is returned waits for the result."""

    def sum(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """The sum of a tensor over the ranks."""
        return self.sum_async(tensor, name)()

    @abstractmethod
    def broadcast(self, tensors: Sequence[torch.Tensor]) -> None:
        """Overwrite the tensors with those of rank 0."""

    def average(self, tensors: Iterable[torch.Tensor], name: str) -> None:
        """Overwrite floating-point tensors with their mean over the ranks (batch-norm statistics)."""
        some = [tensor for tensor in tensors if tensor.is_floating_point()]
        if self.size == 1 or not some:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in some])
        mean = self.sum(flat, name) / self.size
        for tensor, part in zip(some, torch.split(mean, [tensor.numel() for tensor in some]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.sum(torch.zeros(1), "barrier")


class _PlainReducer(Reducer):
    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def finish(self) -> None:
        return

    def step(self) -> None:
        self.optimizer.step()


class Single(Communicator):
    """One process."""

    def reducer(self, optimizer: Optimizer, network: nn.Module, accumulate: int, fp16: bool) -> Reducer:
        return _PlainReducer(optimizer)

    def sum_async(self, tensor: torch.Tensor, name: str) -> Callable[[], torch.Tensor]:
        return lambda: tensor

    def broadcast(self, tensors: Sequence[torch.Tensor]) -> None:
        return


class _HorovodReducer(Reducer):
    def __init__(self, optimizer: Optimizer, network: nn.Module, accumulate: int, fp16: bool) -> None:
        import horovod.torch as hvd

        self.optimizer: Any = hvd.DistributedOptimizer(
            optimizer,
            named_parameters=network.named_parameters(),
            op=hvd.Sum,
            backward_passes_per_step=accumulate,
            compression=hvd.Compression.fp16 if fp16 else hvd.Compression.none,
        )

    def finish(self) -> None:
        self.optimizer.synchronize()

    def step(self) -> None:
        with self.optimizer.skip_synchronize():
            self.optimizer.step()


class Horovod(Communicator):
    """Horovod over the site's MPI (and NCCL where it was built in)."""

    def __init__(self) -> None:
        try:
            import horovod.torch as hvd
        except ImportError as error:
            raise UsageError(
                f"Horovod cannot be imported ({error}); run `make install` (docs/troubleshooting.md), or submit with "
                "--comm torch"
            ) from None
        hvd.init()
        self._hvd = hvd
        self.rank, self.size, self.local_rank = hvd.rank(), hvd.size(), hvd.local_rank()

    def reducer(self, optimizer: Optimizer, network: nn.Module, accumulate: int, fp16: bool) -> Reducer:
        return _HorovodReducer(optimizer, network, accumulate, fp16)

    def sum_async(self, tensor: torch.Tensor, name: str) -> Callable[[], torch.Tensor]:
        handle = self._hvd.allreduce_async(tensor, name=name, op=self._hvd.Sum)
        return lambda: self._hvd.synchronize(handle)

    def broadcast(self, tensors: Sequence[torch.Tensor]) -> None:
        handles = [self._hvd.broadcast_async_(tensor, 0, name=f"broadcast.{n}") for n, tensor in enumerate(tensors)]
        for handle in handles:
            self._hvd.synchronize(handle)


class _TorchReducer(Reducer):
    def __init__(self, optimizer: Optimizer, network: nn.Module, accumulate: int, fp16: bool) -> None:
        self.optimizer = optimizer
        self.buckets = GradientBuckets(network, accumulate, fp16)

    def finish(self) -> None:
        self.buckets.finish()

    def step(self) -> None:
        self.optimizer.step()


class TorchDistributed(Communicator):
    """torch.distributed over NCCL on GPUs and gloo elsewhere; MASTER_ADDR and MASTER_PORT come from the job script."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._dist = dist
        self.rank, self.size = _from_environment(RANK_VARIABLES, 0), _from_environment(SIZE_VARIABLES, 1)
        self.local_rank = _from_environment(LOCAL_VARIABLES, 0)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, init_method="env://", rank=self.rank, world_size=self.size)

    def reducer(self, optimizer: Optimizer, network: nn.Module, accumulate: int, fp16: bool) -> Reducer:
        return _TorchReducer(optimizer, network, accumulate, fp16)

    def sum_async(self, tensor: torch.Tensor, name: str) -> Callable[[], torch.Tensor]:
        result = tensor.clone()
        if torch.cuda.is_available():
            result = result.cuda()
        work = self._dist.all_reduce(result, async_op=True)

        def wait() -> torch.Tensor:
            work.wait()
            return result.to(tensor.device)

        return wait

    def broadcast(self, tensors: Sequence[torch.Tensor]) -> None:
        for tensor in tensors:
            self._dist.broadcast(tensor, 0)


def open_communicator(name: str, num_tasks: int) -> Communicator:
    """The communicator of that name, checked against the number of ranks that were asked for.

    Raises:
        UsageError: Horovod is not installed.
        FailedError: the launcher started ranks that do not know each other.
    """
    kinds: dict[str, Callable[[], Communicator]] = {"horovod": Horovod, "torch": TorchDistributed, "single": Single}
    comm = kinds[name]()
    if comm.size != num_tasks:
        raise FailedError(
            f"asked for {num_tasks} ranks, but this one sees {comm.size}: the launcher and the MPI that {name} was built "
            "with do not fit together; see docs/troubleshooting.md"
        )
    return comm


def _from_environment(names: Iterable[str], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)
