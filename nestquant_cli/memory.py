"""Keeps memory that was freed from staying with the process."""

import contextlib
import ctypes

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of mallopt(3)
_LARGE = 1 << 20  # bytes


def return_large_blocks() -> None:
    """Makes the C library give every block of a MiB or more back to the system as soon as it is freed.

    By default glibc raises that limit to 32 MiB as it goes. What is freed below it stays with the process, in as many
    pieces as threads have made, and over the layers of a model that grows to a multiple of what is in use. Other C
    libraries do without.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)
