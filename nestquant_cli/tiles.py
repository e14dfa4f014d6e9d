"""Work cut into pieces of a fixed size, so that its result does not depend on how many threads share it.

A matrix product or a factorization that several threads of a library work on adds up in an order that follows from
their number. Here a piece is always computed by one thread, and threads share pieces. What is on a GPU is one piece.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from .memory import return_blocks

if TYPE_CHECKING:
    from torch import Tensor, device

TILE = 256  # rows or columns of a piece
SMALL = 256 << 20  # bytes that tasks may need together to be run at the same time

T = TypeVar("T")
_place = threading.local()


def run_pieces(work: Callable[[T], object], pieces: Iterable[T]) -> None:
    """Calls `work` on every piece, each on one thread; as many at a time as torch has threads.

    A piece may be cut into pieces itself: those are done by the thread that works on it. What fails first in the order
    of the pieces is raised. `inference_mode` and the like do not reach into `work`.
    """
    import torch

    pieces = list(pieces)
    if getattr(_place, "inside", False):
        for piece in pieces:
            work(piece)
        return
    list(_pool(torch.get_num_threads(), os.getpid()).map(work, pieces))


def run_tasks(work: Callable[[T], object], tasks: Iterable[T], bytes_needed: int) -> None:
    """Calls `work` on every task: several at a time as pieces if all together need little memory, else one by one.

    Small tasks leave threads idle within them, and large ones are cut into pieces themselves.
    """
    if bytes_needed <= SMALL:
        run_pieces(work, tasks)
        return
    for task in tasks:
        work(task)
        return_blocks()  # what one large task leaves free has not the sizes that the next one wants


def slices(count: int, where: "device", size: int = TILE) -> list[slice]:
    """`count` rows in pieces of `size`; in one piece on a GPU."""
    if where.type != "cpu":
        return [slice(0, count)]
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def over_rows(work: "Callable[[Tensor], Tensor]", x: "Tensor") -> "Tensor":
    """`work` on the rows of x (m, n), piece by piece; its results (m, …) of one dtype, put together."""
    import torch

    parts = slices(len(x), x.device, 4 * TILE)
    if x.device.type != "cpu":
        return work(x)
    results: dict[int, Tensor] = {}

    def one(part: slice) -> None:
        results[part.start] = work(x[part])

    run_pieces(one, parts)
    return torch.cat([results[part.start] for part in parts]) if len(parts) > 1 else results[0]


def product(a: "Tensor", b: "Tensor") -> "Tensor":
    """a @ b for matrices (m, k) and (k, n)."""
    return over_rows(lambda rows: rows @ b, a)


def diagonal_blocks(matrix: "Tensor", size: int) -> "Tensor":
    """The blocks (n/size, size, size) on the diagonal of a matrix (n, n), as a view where its strides allow one."""
    count = len(matrix) // size
    return matrix.reshape(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


@functools.lru_cache(maxsize=8)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "nestquant", initializer=_enter)


def _enter() -> None:
    import torch

    torch.set_num_threads(1)
    _place.inside = True
