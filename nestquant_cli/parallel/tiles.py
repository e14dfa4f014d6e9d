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

from ..base.device import on_host
from ..base.memory import return_blocks

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
        return_blocks()  # blocks that one large task frees rarely fit the next one


def slices(count: int, where: "device", size: int = TILE) -> list[slice]:
    """`count` rows in pieces of `size`; in one piece on a GPU."""
    if not on_host(where):
        return [slice(0, count)]
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def over_rows(work: "Callable[[Tensor], Tensor]", x: "Tensor") -> "Tensor":
    """`work` on the rows of x (m, n), piece by piece; its results (m, …) of one dtype, put together."""
    import torch

    parts = slices(len(x), x.device, 4 * TILE)
    if not on_host(x.device):
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
    """Threads that are all there when it returns: while one begins, no other thread should set torch's threads."""
    pool = ThreadPoolExecutor(threads, "nestquant")
    together = threading.Barrier(threads)  # a thread that waits here takes no second beginning
    try:
        for begun in [pool.submit(_begin, together) for _ in range(threads)]:
            begun.result()
    except BaseException:
        together.abort()
        pool.shutdown(wait=False)
        raise
    return pool


def _begin(together: threading.Barrier) -> None:
    set_own_threads(1)
    _place.inside = True
    together.wait()


def set_own_threads(count: int) -> None:
    """Sets with how many threads torch computes in this Python thread, and in no other.

    `torch.set_num_threads` also sets the number that later threads start with. A thread takes that one over at its
    first operation, even when it has been given another before. So this thread takes it over first, and a thread that
    does nothing else sets it again.
    """
    import torch

    torch.get_num_threads()
    with _changing:
        default: list[int] = []
        _in_new_thread(lambda: default.append(torch.get_num_threads()))
        torch.set_num_threads(count)
        _in_new_thread(lambda: torch.set_num_threads(default[0]))


def _in_new_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work, name="nestquant")
    thread.start()
    thread.join()


_changing = threading.Lock()
if hasattr(os, "register_at_fork"):  # no child starts with a number that is about to be set again, or with a lock held
    os.register_at_fork(before=_changing.acquire, after_in_parent=_changing.release, after_in_child=_changing.release)
