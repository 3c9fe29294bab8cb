"""Ranks talking to each other: Horovod (the default), torch.distributed, or nobody. The loop knows only `Communicator`."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

from hpcdl.errors import FailedError, UsageError
from hpcdl.pulse import own_pulse
from hpcdl.ranks import own_local_rank, own_rank, own_size
from hpcdl.train.buckets import GradientBuckets, fill_gradients


class PeerLostError(FailedError):
    """Talking to the other ranks failed: one of them is gone, and that one knows why."""


class Communicator(ABC):
    """`size` processes; this one is `rank`, and the `local_rank`-th on its node."""

    rank = 0
    size = 1
    local_rank = 0

    def reducer(self, network: nn.Module, name: str, accumulate: int, fp16: bool) -> Callable[[], None]:
        """Sum the network's gradients over the ranks, from now on, while backward runs.

        Args:
            accumulate: backward passes after which a gradient is complete.
            fp16: whether gradients travel in half precision.

        Returns:
            What waits until every gradient holds the sum over all ranks.
        """
        return GradientBuckets(network, f"gradient.{name}", accumulate, fp16, self.sum_async).finish

    @abstractmethod
    def sum_async(self, tensor: torch.Tensor, name: str) -> Callable[[], torch.Tensor]:
        """Begin to sum a tensor over the ranks, perhaps in place; the call that is returned waits for the result.

        Raises:
            PeerLostError: another rank is gone (also from the call that is returned).
        """

    def sum(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """The sum of a tensor over the ranks."""
        with own_pulse().waiting():
            return self.sum_async(tensor, name)()

    @abstractmethod
    def broadcast(self, tensors: Sequence[torch.Tensor]) -> None:
        """Overwrite the tensors with those of rank 0."""

    def mean(self, tensors: Sequence[torch.Tensor], name: str) -> list[torch.Tensor]:
        """The mean over the ranks of each floating-point tensor; the others as they are. New tensors where ranks differ."""
        floats = [tensor for tensor in tensors if tensor.is_floating_point()]
        if self.size == 1 or not floats:
            return list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in floats])
        parts = iter(torch.split(self.sum(flat, name) / self.size, [tensor.numel() for tensor in floats]))
        return [next(parts).view_as(tensor) if tensor.is_floating_point() else tensor for tensor in tensors]

    def gather(self, data: bytes) -> list[bytes]:
        """The bytes of every rank, on every rank; some kilobytes each, as a sum has to carry them all."""
        if self.size == 1:
            return [data]
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(data)
        lengths = self.sum(lengths, "gather.lengths")
        width = max(8, -(-int(lengths.max()) // 8) * 8)
        table = torch.zeros((self.size, width // 8), dtype=torch.int64)
        padded = bytearray(data.ljust(width, b"\0"))
        table[self.rank] = torch.frombuffer(padded, dtype=torch.int64)
        rows = self.sum(table, "gather.table").numpy()
        return [rows[rank].tobytes()[: int(length)] for rank, length in enumerate(lengths)]


class Single(Communicator):
    """One process."""

    def reducer(self, network: nn.Module, name: str, accumulate: int, fp16: bool) -> Callable[[], None]:
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        return lambda: fill_gradients(parameters)

    def sum_async(self, tensor: torch.Tensor, name: str) -> Callable[[], torch.Tensor]:
        return lambda: tensor

    def broadcast(self, tensors: Sequence[torch.Tensor]) -> None:
        return


class Horovod(Communicator):
    """Horovod over the site's MPI (and NCCL where it was built in)."""

    ENVIRONMENT: Mapping[str, str] = {"HOROVOD_FUSION_THRESHOLD": "0", "HOROVOD_AUTOTUNE": "0"}
    """Buckets do the fusion, always the same; Horovod's own depends on timing, and so would the last bit of every sum."""

    def __init__(self) -> None:
        os.environ.update(self.ENVIRONMENT)
        try:
            import horovod.torch as hvd
            from horovod.common.exceptions import HorovodInternalError
        except ImportError as error:
            raise UsageError(
                f"Horovod cannot be imported ({error}); run `make install` (docs/troubleshooting.md), or submit with "
                "--comm torch"
            ) from None
        hvd.init()
        self._hvd, self._error = hvd, HorovodInternalError
        self.rank, self.size, self.local_rank = hvd.rank(), hvd.size(), hvd.local_rank()

    def sum_async(self, tensor: torch.Tensor, name: str) -> Callable[[], torch.Tensor]:
        try:
            handle = self._hvd.allreduce_async_(tensor, name=name, op=self._hvd.Sum)
        except self._error as error:
            raise PeerLostError(f"Horovod: {error}") from None
        return lambda: self._wait(handle)

    def broadcast(self, tensors: Sequence[torch.Tensor]) -> None:
        try:
            handles = [self._hvd.broadcast_async_(tensor, 0, name=f"broadcast.{n}") for n, tensor in enumerate(tensors)]
        except self._error as error:
            raise PeerLostError(f"Horovod: {error}") from None
        for handle in handles:
            self._wait(handle)

    def _wait(self, handle: int) -> torch.Tensor:
        try:
            result: torch.Tensor = self._hvd.synchronize(handle)
        except self._error as error:
            raise PeerLostError(f"Horovod: {error}") from None
        return result


class TorchDistributed(Communicator):
    """torch.distributed over NCCL on GPUs and gloo elsewhere; MASTER_ADDR and MASTER_PORT come from the job script."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._dist = dist
        self.rank, self.size, self.local_rank = own_rank(), own_size(), own_local_rank()
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, init_method="env://", rank=self.rank, world_size=self.size)

    def sum_async(self, tensor: torch.Tensor, name: str) -> Callable[[], torch.Tensor]:
        there = tensor.cuda() if torch.cuda.is_available() else tensor
        try:
            work = self._dist.all_reduce(there, async_op=True)
        except RuntimeError as error:
            raise PeerLostError(f"torch.distributed: {error}") from None

        def wait() -> torch.Tensor:
            try:
                work.wait()
            except RuntimeError as error:
                raise PeerLostError(f"torch.distributed: {error}") from None
            return there.to(tensor.device)

        return wait

    def broadcast(self, tensors: Sequence[torch.Tensor]) -> None:
        try:
            for tensor in tensors:
                self._dist.broadcast(tensor, 0)
        except RuntimeError as error:
            raise PeerLostError(f"torch.distributed: {error}") from None


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
    if comm.size > 1 and comm.rank != own_rank():
        raise FailedError(
            f"this is rank {comm.rank}, but the launcher's variables say {own_rank()}: hpcdl does not know this launcher; "
            "see hpcdl/ranks.py"
        )
    return comm


def sum_plain(comm: Communicator, values: Iterable[float], name: str) -> list[float]:
    """Sums over the ranks of plain numbers."""
    total: list[float] = comm.sum(torch.tensor(list(values), dtype=torch.float64), name).tolist()
    return total
