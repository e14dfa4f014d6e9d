"""Work cut into pieces of a fixed size, so that its result does not depend on the number of threads.

When several threads of a library compute one matrix product or factorization, the order of summation depends on their
number. Here each piece is computed by one thread, and threads share out the pieces. On a GPU all the work is one piece.
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

TILE = 256  # rows or columns of a piece; results depend on it in their last bits, so it is fixed
SMALL = 256 << 20  # bytes; tasks that need at most this together run at the same time

T = TypeVar("T")
_thread = threading.local()


def run_pieces(work: Callable[[T], object], pieces: Iterable[T]) -> None:
    """Calls `work` on every piece, each on one thread, with as many threads as torch has.

    A piece may call this itself: its pieces are computed by the same thread. Contexts such as `inference_mode` of the
    caller do not hold inside `work`.

    Raises:
        Exception: `work` raised it; of several, that of the first piece.
    """
    import torch

    pieces = list(pieces)
    if getattr(_thread, "inside", False):
        for piece in pieces:
            work(piece)
        return
    list(_pool(torch.get_num_threads(), os.getpid()).map(work, pieces))


def run_tasks(work: Callable[[T], object], tasks: Iterable[T], bytes_needed: "int | Callable[[T], int]") -> None:
    """Calls `work` on every task: side by side if they need little memory together, else one after the other.

    A small task would leave threads idle; a large one is cut into pieces by itself.

    Args:
        work: function of one task.
        tasks: the tasks, in the order in which they are started.
        bytes_needed: memory of all tasks together; up to `SMALL`, 256 MiB, they run side by side. A function of a task
            gives that of one; then as many as need at most so much run side by side, and the next ones after them.
    """
    if callable(bytes_needed):
        together: list[T] = []
        for task in tasks:
            if together and sum(map(bytes_needed, (*together, task))) > SMALL:
                run_tasks(work, together, sum(map(bytes_needed, together)))
                return_blocks()  # many small tasks leave as many freed blocks as large ones
                together = []
            together.append(task)
        run_tasks(work, together, sum(map(bytes_needed, together)))
        return
    if bytes_needed <= SMALL:
        run_pieces(work, tasks)
        return
    for task in tasks:
        work(task)
        return_blocks()  # the blocks that a large task frees rarely fit the next one


def slices(count: int, where: "device", size: int = TILE) -> list[slice]:
    """Slices of `size` rows that cover `count` rows; on a GPU, one slice.

    Args:
        count: number of rows.
        where: device that the rows are on.
        size: rows of a slice; the last one may be shorter.
    """
    if not on_host(where):
        return [slice(0, count)]
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def over_rows(work: "Callable[[Tensor], Tensor]", x: "Tensor") -> "Tensor":
    """Applies `work` to pieces of 1024 rows of x and concatenates the results.

    Args:
        work: maps (rows, n) to (rows, …); the dtype of its result is the same for all pieces.
        x: (m, n).

    Returns:
        (m, …), as `work(x)` on the whole.
    """
    import torch

    pieces = slices(len(x), x.device, 4 * TILE)
    if not on_host(x.device):
        return work(x)
    results: dict[int, Tensor] = {}

    def run_piece(rows: slice) -> None:
        results[rows.start] = work(x[rows])

    run_pieces(run_piece, pieces)
    return torch.cat([results[rows.start] for rows in pieces]) if len(pieces) > 1 else results[0]


def product(a: "Tensor", b: "Tensor") -> "Tensor":
    """a @ b for matrices (m, k) and (k, n), in pieces of 1024 rows of a."""
    return over_rows(lambda rows: rows @ b, a)


def diagonal_blocks(matrix: "Tensor", size: int) -> "Tensor":
    """The blocks (n/size, size, size) on the diagonal of a matrix (n, n), as a view where its strides allow one."""
    count = len(matrix) // size
    return matrix.reshape(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


@functools.lru_cache(maxsize=8)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """A pool whose threads have all started: while one starts, no other thread may set torch's number of threads."""
    pool = ThreadPoolExecutor(threads, "nestquant")
    together = threading.Barrier(threads)  # a thread that waits here cannot take a second call of `_begin`
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
    _thread.inside = True
    together.wait()


def set_own_threads(count: int) -> None:
    """Sets the number of threads that torch computes with in this Python thread only.

    `torch.set_num_threads` also sets the number that later Python threads start with. A thread takes that number over
    at its first operation, even if its own number was set before. So this thread performs an operation first, and a
    new thread sets the old number for later threads again.
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
if hasattr(os, "register_at_fork"):  # a child process must not start in between, with a wrong number or a held lock
    os.register_at_fork(before=_changing.acquire, after_in_parent=_changing.release, after_in_child=_changing.release)
