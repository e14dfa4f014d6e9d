"""The processes of one run: started by torchrun, joined through torch.distributed, each knowing its share of the work.

A process that was started alone is a team of one, for which every function here does nothing or returns what it was
given. What processes send to each other goes through torch.distributed, which pickles objects: they are all parts of
one run by one user.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import NestQuantError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """This process among the others.

    Attributes:
        rank: its number, from 0; rank 0 writes and talks.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and talks."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This process's part of `count` things in a row: neighbours stay together, no two parts differ by over 1."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum(self, tensor: "Tensor") -> None:
        """Replaces `tensor` by its sum over all processes."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)

    def gather(self, value: T) -> list[T]:
        """The values of all processes in order of their ranks, on every process."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def tell(self, value: T) -> T:
        """The value of rank 0, on every process."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0)
        told: T = values[0]
        return told

    def together(self, work: Callable[[], T]) -> list[T]:
        """Results of `work` of all processes in order of their ranks; where one of them fails, all raise its error.

        Raises:
            NestQuantError: that of the first process that failed.
        """
        outcome: T | NestQuantError
        try:
            outcome = work()
        except NestQuantError as error:
            outcome = error
        return _unless_failed(self.gather(outcome))

    def lead(self, work: Callable[[], T]) -> T:
        """Rank 0 does the work; the others get its result, or its NestQuantError."""
        outcome: Any = None
        try:
            outcome = work() if self.leads else None
        except NestQuantError as error:
            outcome = error
        told: T = _unless_failed([self.tell(outcome)])[0]
        return told


def team() -> Team:
    """The team of this process, a team of one where none was joined."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return Team()
    return Team(dist.get_rank(), dist.get_world_size())


def launched() -> Team:
    """What torchrun said when it started this process, before anything is joined."""
    return Team(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Joins the processes that torchrun started, and yields the device of this one.

    Args:
        device: "cpu", "cuda" or "cuda:1"; of several processes on "cuda" each takes the GPU of its local rank.

    Raises:
        NestQuantError: the other processes do not answer.
    """
    if launched().size == 1:
        yield device
        return
    import torch
    import torch.distributed as dist

    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    # gloo carries tensors of the CPU and Python objects, nccl those of GPUs
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise NestQuantError(
            f"the processes of this run cannot find each other ({str(error).splitlines()[0]})",
            "nothing was done",
            "check MASTER_ADDR and MASTER_PORT, or start them with torchrun",
        ) from error
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _unless_failed(outcomes: "Sequence[T | NestQuantError]") -> list[T]:
    for outcome in outcomes:
        if isinstance(outcome, NestQuantError):
            outcome.everywhere = True
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, NestQuantError)]
