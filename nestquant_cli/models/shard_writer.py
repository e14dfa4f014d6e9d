"""Safetensors files, written one tensor at a time, so that no more than one has to be in memory."""

import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .shards import DTYPES, LENGTH_BYTES, bytes_of

if TYPE_CHECKING:
    from torch import Tensor

_ROOM = 160  # bytes of a tensor's description in a header besides its name


def write_shard(
    path: Path, tensors: "dict[str, Tensor]", fetch: "Callable[[str], Iterable[Tensor]] | None" = None
) -> None:
    """Writes a safetensors file tensor by tensor.

    Args:
        path: file to write; one that is there is replaced.
        tensors: the tensors by name, on any device.
        fetch: gives the tensor of a name whose tensor in `tensors`, on the meta device, has only a shape and a dtype;
            in pieces along its first dimension.
    """
    names = {torch_name: name for name, (torch_name, _) in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # in the library's order, the largest entries first, so that every tensor is aligned to its entries
    rank = {dtype: number for number, dtype in enumerate(names)}
    order = sorted(tensors, key=lambda name: (-rank[_dtype_name(tensors[name])], name))
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        dtype = names[_dtype_name(tensor)]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        for name in order:
            wanted = tensors[name]
            written = 0
            for piece in fetch(name) if fetch is not None and wanted.is_meta else (wanted,):
                assert piece.dtype == wanted.dtype
                written += file.write(bytes_of(piece))
            assert written == wanted.numel() * wanted.element_size()


class GrowingShard:
    """A safetensors file that gets its tensors one after the other; what they are need not be known before.

    Room for the header is left at the beginning, and padded with spaces, as the format allows.

    Args:
        path: file to write; one that is there is replaced.
        names: names of all tensors that may come.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, names: Collection[str]) -> None:
        self.path = path
        self._room = _ROOM + sum(len(json.dumps(name)) + _ROOM for name in names)
        self._room += -self._room % LENGTH_BYTES
        self._header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._end = 0
        self._file = open(path, "wb")  # noqa: SIM115 - open for as long as this object
        self._file.seek(LENGTH_BYTES + self._room)

    def add(self, name: str, tensor: "Tensor") -> None:
        """Writes a tensor of float32."""
        data = bytes_of(tensor)
        self._file.write(data)
        place = [self._end, self._end + len(data)]
        self._header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": place}
        self._end += len(data)

    def close(self) -> None:
        """Writes the header; the file is complete after it."""
        text = json.dumps(self._header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= self._room
        self._file.seek(0)
        self._file.write(self._room.to_bytes(LENGTH_BYTES, "little") + text.ljust(self._room))
        self._file.close()

    def abandon(self) -> None:
        """Closes the file as it is."""
        self._file.close()


def _dtype_name(tensor: "Tensor") -> str:
    return str(tensor.dtype).removeprefix("torch.")
