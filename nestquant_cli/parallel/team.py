"""The processes of one run: started by torchrun, joined through torch.distributed, each with its share of the work.

A process that was started alone is a team of one, for which every function here does nothing or returns its argument.
Objects are exchanged through torch.distributed, which pickles them. That is safe because all processes are parts of one
run by one user.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ..base.errors import NestQuantError, first_line
from .watch import Watch, connect

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

_START = timedelta(minutes=5)  # time in which all processes have to start
_LONGEST = timedelta(days=14)  # time of an exchange, in which others wait for the work of one process


@dataclass(frozen=True)
class Team:
    """This process among the others.

    Attributes:
        rank: number of this process, from 0. Rank 0 writes files and prints.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is rank 0, which writes files and prints."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Indices of this process's share of `count` items: consecutive, and no two shares differ by more than 1."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum(self, tensor: "Tensor") -> None:
        """Replaces `tensor` by its sum over all processes, in place.

        Raises:
            NestQuantError: another process has ended.
        """
        if self.size > 1:
            import torch.distributed as dist

            with _noticing_lost_processes():
                dist.all_reduce(tensor)

    def gather(self, value: T) -> list[T]:
        """The values of all processes in order of their ranks, on every process.

        Args:
            value: any object that can be pickled.

        Raises:
            NestQuantError: another process has ended.
        """
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with _noticing_lost_processes():
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """The value of rank 0, on every process; values of the others are ignored.

        Raises:
            NestQuantError: another process has ended.
        """
        if self.size == 1:
            return value
        import torch.distributed as dist

        values: list[Any] = [value]
        with _noticing_lost_processes():
            dist.broadcast_object_list(values, src=0)
        received: T = values[0]
        return received

    def run_on_all(self, work: Callable[[], T]) -> list[T]:
        """Calls `work` on every process and returns all results in order of their ranks.

        Raises:
            NestQuantError: `work` raised it on some process. All processes raise the error of the first such rank.
        """
        outcome: T | NestQuantError
        try:
            outcome = work()
        except NestQuantError as error:
            outcome = error
        return _unless_failed(self.gather(outcome))

    def run_on_rank0(self, work: Callable[[], T]) -> T:
        """Calls `work` on rank 0 only and returns its result on every process.

        Raises:
            NestQuantError: `work` raised it. All processes raise it.
        """
        outcome: Any = None
        try:
            outcome = work() if self.leads else None
        except NestQuantError as error:
            outcome = error
        result: T = _unless_failed([self.broadcast(outcome)])[0]
        return result


def team() -> Team:
    """The team that this process has joined, or a team of one."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return Team()
    return Team(dist.get_rank(), dist.get_world_size())


def launched() -> Team:
    """The team that torchrun's environment variables name, before anything is joined and without importing torch.

    A process without WORLD_SIZE is alone: clusters also set RANK in shells, where torchrun started nothing.
    """
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return Team()
    return Team(rank, size) if 0 <= rank < size else Team()


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Joins the processes that torchrun started, and yields the device of this one.

    When another process fails or is killed, this one ends within seconds: the block raises an error at its next
    exchange, or, if none comes, the process exits with code 2.

    Args:
        device: "cpu", "cuda" or "cuda:1". Of several processes on "cuda", each gets the GPU of its local rank.

    Raises:
        NestQuantError: the other processes do not answer within 5 minutes.
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
        # the rendezvous waits as long as processes take to start; an exchange may wait for hours of work
        store, rank, size = next(dist.rendezvous("env://", timeout=_START))
        watch = connect(rank, size, store, _START)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_LONGEST)
    except (RuntimeError, ValueError) as error:
        raise NestQuantError(
            f"the processes of this run cannot find each other ({first_line(error)})",
            "nothing was done",
            "check MASTER_ADDR and MASTER_PORT, or start them with torchrun",
        ) from error
    _Joined.watch, failed = watch, True
    try:
        yield device
        failed = False
    except BaseException as error:
        failed = not getattr(error, "raised_by_all", False)  # what all of them raise, all of them know
        raise
    finally:
        _Joined.watch = None
        watch.leave(failed)
        if not failed or backend == "gloo":  # nccl would wait for processes that are gone
            dist.destroy_process_group()


class _Joined:
    """State of the team that this process has joined."""

    watch: Watch | None = None


@contextmanager
def _noticing_lost_processes() -> Iterator[None]:
    """Turns the failure of an exchange into an error that names the process that has ended, if one has."""
    try:
        yield
    except RuntimeError as error:
        lost = None if _Joined.watch is None else _Joined.watch.lost()
        if lost is None:
            raise
        raise lost from error


def _unless_failed(outcomes: "Sequence[T | NestQuantError]") -> list[T]:
    """The outcomes, unless one is an error, which is raised and marked as raised by all processes."""
    for outcome in outcomes:
        if isinstance(outcome, NestQuantError):
            outcome.raised_by_all = True
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, NestQuantError)]
