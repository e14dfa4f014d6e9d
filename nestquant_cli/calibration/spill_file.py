"""A file without a name for tensors that memory has no room for, and a store of tensors that fills it."""

import os
import tempfile
import threading
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..base.errors import NestQuantError
from ..models.shards import bytes_of


class SpillFile:
    """A file that is read and written, not mapped: mapped pages count as memory of the process.

    It has no name, so that nothing is left of it whatever ends the process. Threads read and write at places of their
    own, never at a position of the file that they would share. It is made with the first write.

    Args:
        folder: folder of the file; None takes the system's folder for temporary files.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._file: BinaryIO | None = None
        self._making = threading.Lock()

    def read(self, like: Tensor, offset: int) -> Tensor:
        """The tensor of shape and dtype of `like` (on any device) that was written at `offset` (bytes)."""
        assert self._file is not None
        data = torch.empty(like.nbytes, dtype=torch.uint8)
        left = bytes_of(data)
        while left:
            read = os.preadv(self._file.fileno(), [left], offset)
            assert read, "the file is as long as what was written to it"
            left, offset = left[read:], offset + read
        return data.view(like.dtype).view(like.shape)

    def write(self, tensor: Tensor, offset: int) -> None:
        """Writes a contiguous tensor on the CPU at `offset` (bytes).

        Raises:
            NestQuantError: there is no room.
        """
        try:
            with self._making:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115 - lives as self
            left = bytes_of(tensor)
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


class KeptTensors:
    """Tensors of any shapes, in memory up to a budget and then in a file; each is dropped when it is needed no more.

    Args:
        budget: bytes that may stay in memory.
        folder: folder of the file; None takes the system's folder for temporary files.
    """

    def __init__(self, budget: int, folder: Path | None = None) -> None:
        self.left = budget
        self._file = SpillFile(folder)
        self._end = 0
        self._free: dict[int, list[int]] = {}  # places in the file that are free again, by their size
        self._changing = threading.RLock()  # a garbage collection may drop tensors while one is kept

    def keep(self, tensor: Tensor) -> "Kept":
        """Keeps a tensor of any device; it is not copied where it stays in memory and is no part of a larger one."""
        tensor = tensor.cpu()
        with self._changing:
            inside = tensor.nbytes <= self.left
            if inside:
                self.left -= tensor.nbytes
        if inside:
            part = tensor.untyped_storage().nbytes() > tensor.nbytes
            return Kept(self, tensor.clone(memory_format=torch.contiguous_format) if part else tensor, None)
        with self._changing:
            free = self._free.get(tensor.nbytes)
            offset = free.pop() if free else self._end
            self._end = max(self._end, offset + tensor.nbytes)
        self._file.write(tensor.contiguous(), offset)
        return Kept(self, torch.empty_like(tensor, device="meta"), offset)


class Kept:
    """A tensor that a store keeps.

    Args:
        store: the store.
        tensor: the tensor, on the meta device where it lies in the file.
        offset: its place in the file; None for a tensor in memory.
    """

    def __init__(self, store: KeptTensors, tensor: Tensor, offset: int | None) -> None:
        self._store, self._tensor, self._offset = store, tensor, offset

    def get(self) -> Tensor:
        """The tensor, on the CPU."""
        return self._tensor if self._offset is None else self._store._file.read(self._tensor, self._offset)

    def __del__(self) -> None:
        with self._store._changing:
            if self._offset is None:
                self._store.left += self._tensor.nbytes
            else:
                self._store._free.setdefault(self._tensor.nbytes, []).append(self._offset)
