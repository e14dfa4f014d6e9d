"""Keeps memory that was freed from staying with the process for good."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)
_LARGE = 32 << 20  # bytes; glibc takes no more for the second
_EVERYTHING = 1 << 30  # bytes of free memory at the end of the heap that are kept


@contextmanager
def reuse_blocks() -> Iterator[None]:
    """Within it the C library keeps freed blocks of up to 32 MiB for the next ones, until `return_blocks`.

    A layer's pass over a window takes the same blocks again and again, and each page of a fresh block costs a visit to
    the system. Other C libraries than glibc do as they always do.
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
        # glibc does not tell what it had before, nor adjusts the two by itself again. Left to itself it ends here: at
        # the size of the largest block that was freed, up to 32 MiB, and twice that.
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGE)
        library.malloc_trim(0)


def return_blocks() -> None:
    """Gives all free memory back to the system.

    Threads leave it in so many pieces that over the layers of a model it would grow to a multiple of what is in use.
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
