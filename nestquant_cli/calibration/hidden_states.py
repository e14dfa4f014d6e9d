"""Stores the hidden states of many windows: in memory up to a budget, beyond it in a file without a name."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..base.errors import NestQuantError
from ..models.shards import bytes_of

DEFAULT_BUDGET = 2 << 30  # bytes that stay in memory: 2 GiB, 910 windows of 2,048 tokens 576 wide in bfloat16


class HiddenStates:
    """A list of tensors, one a window, all of one shape and dtype, that can be read, replaced and appended to.

    A file is read and written, not mapped: mapped pages count as memory of the process. It has no name, so that
    nothing is left of it whatever ends the process. Windows run side by side, so each is read and written at its own
    place, never at a position of the file that threads would share.

    Args:
        budget: bytes that may stay in memory; windows beyond it go to the file.
        folder: folder of the file; None takes the system's folder for temporary files.
    """

    def __init__(self, budget: int = DEFAULT_BUDGET, folder: Path | None = None) -> None:
        self.budget, self.folder = budget, folder
        self._kept: list[Tensor] = []
        self._count = 0
        self._file: BinaryIO | None = None
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
        assert self._file is not None
        data = torch.empty(self._like.nbytes, dtype=torch.uint8)
        left, offset = bytes_of(data), self._offset(number)
        while left:
            read = os.preadv(self._file.fileno(), [left], offset)
            assert read, "the file is as long as what was written to it"
            left, offset = left[read:], offset + read
        return data.view(self._like.dtype).view(self._like.shape)

    def __setitem__(self, number: int, hidden: Tensor) -> None:
        if number < len(self._kept):
            self._kept[number] = hidden.cpu()
        else:
            self._write(number, hidden.cpu())

    def _offset(self, number: int) -> int:
        return (number - len(self._kept)) * self._like.nbytes

    def _write(self, number: int, hidden: Tensor) -> None:
        assert (hidden.shape, hidden.dtype) == (self._like.shape, self._like.dtype)
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115 - lives as long as self
            left, offset = bytes_of(hidden), self._offset(number)
            while left:
                written = os.pwrite(self._file.fileno(), left, offset)
                left, offset = left[written:], offset + written
        except OSError as error:
            raise NestQuantError(
                f"the hidden states cannot be written to {self.folder or tempfile.gettempdir()} "
                f"({error.strerror or error})",
                "calibration stopped",
                "free space there, or raise --memory-budget",
            ) from error
