"""Stores the hidden states of many windows: in memory up to a budget, beyond it in a file without a name."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from .spill_file import SpillFile

DEFAULT_BUDGET = 2 << 30  # bytes that stay in memory: 2 GiB, 910 windows of 2,048 tokens 576 wide in bfloat16


class HiddenStates:
    """A list of tensors, one a window, all of one shape and dtype, that can be read, replaced and appended to.

    Args:
        budget: bytes that may stay in memory; windows beyond it go to the file.
        folder: folder of the file; None takes the system's folder for temporary files.
    """

    def __init__(self, budget: int = DEFAULT_BUDGET, folder: Path | None = None) -> None:
        self.budget, self.folder = budget, folder
        self._kept: list[Tensor] = []
        self._count = 0
        self._file = SpillFile(folder)
        self._like = torch.empty(0)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Tensor]:
        return (self[number] for number in range(len(self)))

    def append(self, hidden: Tensor) -> None:
        """Adds the hidden states of the next window."""
        hidden = hidden.cpu()
        self._like = self._like if self._count else torch.empty_like(hidden, device="meta")
        self._count += 1
        if len(self._kept) == self._count - 1 and self._count * hidden.nbytes <= self.budget:
            self._kept.append(hidden)
        else:
            self._write(self._count - 1, hidden)

    def __getitem__(self, number: int) -> Tensor:
        if number < len(self._kept):
            return self._kept[number]
        return self._file.read(self._like, self._offset(number))

    def __setitem__(self, number: int, hidden: Tensor) -> None:
        if number < len(self._kept):
            self._kept[number] = hidden.cpu()
        else:
            self._write(number, hidden.cpu())

    def _offset(self, number: int) -> int:
        return (number - len(self._kept)) * self._like.nbytes

    def _write(self, number: int, hidden: Tensor) -> None:
        assert (hidden.shape, hidden.dtype) == (self._like.shape, self._like.dtype)
        self._file.write(hidden, self._offset(number))
