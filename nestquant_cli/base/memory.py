"""Settings of glibc's malloc that keep freed memory from piling up in the process."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)
_LARGE = 32 << 20  # bytes; the most that glibc takes for M_MMAP_THRESHOLD
_EVERYTHING = 1 << 30  # bytes of free memory at the end of the heap that are kept for reuse


@contextmanager
def reuse_blocks() -> Iterator[None]:
    """Within this context, glibc keeps freed blocks of up to 32 MiB for the next allocations, until `return_blocks`.

    A layer's pass over a window allocates the same blocks again and again, and each page of a fresh block costs a page
    fault. With other C libraries, nothing changes.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _LARGE)
    library.mallopt(_TRIM_THRESHOLD, _EVERYTHING)
    try:
        yield
    finally:
        # glibc does not report the old values, and no longer adjusts the two by itself once they were set. By itself it
        # raises them to the size of the largest freed block, at most 32 MiB, and to twice that.
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGE)
        library.malloc_trim(0)


def return_blocks() -> None:
    """Returns all free memory to the system.

    Threads fragment it so much that, over the layers of a model, it would grow to a multiple of the memory in use.
    """
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@lru_cache(maxsize=1)
def _glibc() -> Any:
    try:
        library = ctypes.CDLL(None)
        return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
    except OSError:
        return None
