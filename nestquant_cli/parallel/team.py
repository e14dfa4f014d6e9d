"""The processes of one run: started by torchrun, joined through torch.distributed, each knowing its share of the work.

A process that was started alone is a team of one, for which every function here does nothing or returns what it was
given. What processes send to each other goes through torch.distributed, which pickles objects: they are all parts of
one run by one user.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ..base.errors import NestQuantError
from .watch import Watch, connect

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

_START = timedelta(minutes=5)  # in which all processes have to be there
_LONGEST = timedelta(days=14)


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

            with _talking():
                dist.all_reduce(tensor)

    def gather(self, value: T) -> list[T]:
        """The values of all processes in order of their ranks, on every process."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with _talking():
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """The value of rank 0, on every process."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values: list[Any] = [value]
        with _talking():
            dist.broadcast_object_list(values, src=0)
        told: T = values[0]
        return told

    def run_on_all(self, work: Callable[[], T]) -> list[T]:
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

    def run_on_rank0(self, work: Callable[[], T]) -> T:
        """Rank 0 does the work; the others get its result, or its NestQuantError."""
        outcome: Any = None
        try:
            outcome = work() if self.leads else None
        except NestQuantError as error:
            outcome = error
        told: T = _unless_failed([self.broadcast(outcome)])[0]
        return told


def team() -> Team:
    """The team of this process, a team of one where none was joined."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return Team()
    return Team(dist.get_rank(), dist.get_world_size())


def launched() -> Team:
    """What torchrun said when it started this process, before anything is joined.

    Clusters set RANK in shells too, where nothing was launched: that is a process alone.
    """
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return Team()
    return Team(rank, size) if 0 <= rank < size else Team()


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Joins the processes that torchrun started, and yields the device of this one.

    Where one of them fails or is killed, the others end within seconds, in this process by an error of the block or,
    when it does not come to one, with exit code 2.

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
        # the store is waited for no longer than processes take to start; an exchange may wait for hours of work
        store, rank, size = next(dist.rendezvous("env://", timeout=_START))
        watch = connect(rank, size, store, _START)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_LONGEST)
    except (RuntimeError, ValueError) as error:
        raise NestQuantError(
            f"the processes of this run cannot find each other ({str(error).splitlines()[0]})",
            "nothing was done",
            "check MASTER_ADDR and MASTER_PORT, or start them with torchrun",
        ) from error
    _Joined.watch, failed = watch, True
    try:
        yield device
        failed = False
    except BaseException as error:
        failed = not getattr(error, "everywhere", False)  # what all of them raise needs no telling
        raise
    finally:
        _Joined.watch = None
        watch.leave(failed)
        if not failed or backend == "gloo":  # nccl would wait for those that are gone
            dist.destroy_process_group()


class _Joined:
    """What the functions of a team share."""

    watch: Watch | None = None


@contextmanager
def _talking() -> Iterator[None]:
    """An exchange that fails because another process has ended raises an error that says so."""
    try:
        yield
    except RuntimeError as error:
        lost = None if _Joined.watch is None else _Joined.watch.lost()
        if lost is None:
            raise
        raise lost from error


def _unless_failed(outcomes: "Sequence[T | NestQuantError]") -> list[T]:
    for outcome in outcomes:
        if isinstance(outcome, NestQuantError):
            outcome.everywhere = True
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, NestQuantError)]
