"""Safetensors files, written one tensor at a time, so that no more than one has to be in memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .shards import DTYPES, LENGTH_BYTES, bytes_of

if TYPE_CHECKING:
    from torch import Tensor


def write_shard(path: Path, tensors: "dict[str, Tensor]", fetch: "Callable[[str], Tensor] | None" = None) -> None:
    """Writes a safetensors file tensor by tensor.

    Args:
        path: file to write; one that is there is replaced.
        tensors: the tensors by name, on any device.
        fetch: gives the tensor of a name whose tensor in `tensors`, on the meta device, has only a shape and a dtype.
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
            tensor = fetch(name) if fetch is not None and wanted.is_meta else wanted
            assert (tensor.dtype, tensor.shape) == (wanted.dtype, wanted.shape)
            file.write(bytes_of(tensor))


def _dtype_name(tensor: "Tensor") -> str:
    return str(tensor.dtype).removeprefix("torch.")
