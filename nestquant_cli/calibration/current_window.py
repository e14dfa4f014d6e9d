"""The number of the calibration window that a thread works on, and random choices that depend on it alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_thread = threading.local()


@contextmanager
def in_window(number: int) -> Iterator[None]:
    """Within it this thread works on window `number` of this process."""
    _thread.window = number
    try:
        yield
    finally:
        _thread.window = 0


def current_window() -> int:
    """Number of the window that this thread works on, 0 outside of `in_window`."""
    return getattr(_thread, "window", 0)


def window_generator(seed: int, window: int) -> torch.Generator:
    """Generator for the random choices in one window: they depend on the seed and the window's number alone, so any
    number of processes makes the same ones."""
    return torch.Generator().manual_seed((seed * 1_000_003 + window) % (1 << 63))


def choose(total: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` different indices below `total`, in random order."""
    return torch.randperm(total, generator=generator)[:count]
