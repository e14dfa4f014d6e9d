"""Safetensors files, read one tensor at a time; `models.shard_writer` writes them.

Headers are checked field by field: a shard may come from anyone, or half of it. Files are read and never mapped, since
the pages of a mapped file count as memory of the process for as long as the file is open.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import NestQuantError
from ..storage.files import HASH_CHUNK

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# safetensors' name of a dtype: torch's name and the bytes of one entry; tensors of the last ones come first in a shard
DTYPES = {
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I32": ("int32", 4),
    "U32": ("uint32", 4),
    "F32": ("float32", 4),
    "F64": ("float64", 8),
    "I64": ("int64", 8),
    "U64": ("uint64", 8),
    "C64": ("complex64", 8),
}
PIECE = 1 << 22  # entries that are compared at a time
LENGTH_BYTES = 8  # the header's length, little-endian, is what a file begins with
_LARGEST_HEADER = 100_000_000  # as in the safetensors library
_NOT_READ = "the checkpoint was not read"
_AGAIN = "fetch or write the checkpoint again"


@dataclass(frozen=True)
class Entry:
    """One tensor of a shard.

    Attributes:
        dtype: torch's name of the dtype, such as "uint8".
        shape: shape of the tensor.
        start: offset of its data in the file, in bytes.
        bytes: bytes of its data.
        header_bytes: bytes of its description in the header, the comma included.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int
    header_bytes: int


@dataclass(frozen=True)
class ComputedEntry(Entry):
    """A tensor that is computed from others when it is read: what a method that stores weights otherwise leaves out."""

    def compute(self) -> "Tensor":
        """The tensor, contiguous on the CPU, in the dtype and shape of the entry."""
        raise NotImplementedError

    def part(self, index: int) -> "Tensor":
        """Part `index` of its dimension 0, which is kept with size 1."""
        return self.compute()[index : index + 1].clone()


@dataclass(frozen=True)
class Shard:
    """A safetensors file.

    Attributes:
        path: the file.
        header_bytes: bytes of the length field and the header.
        entries: the tensors by name; their data fills the rest of the file.
    """

    path: Path
    header_bytes: int
    entries: dict[str, Entry]

    @property
    def frame_bytes(self) -> int:
        """Bytes of the header that belong to no tensor: length, braces, metadata, padding."""
        return self.header_bytes - sum(entry.header_bytes for entry in self.entries.values())


def read_shard(path: Path) -> Shard:
    """Reads and checks the header of a safetensors file.

    Raises:
        NestQuantError: missing, truncated, or not a valid safetensors file.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if size < LENGTH_BYTES or length > min(size - LENGTH_BYTES, _LARGEST_HEADER):
                raise _damaged(path, f"its header of {length} bytes does not fit a file of {size} bytes")
            text = file.read(length)
    except OSError as error:
        raise NestQuantError(f"{path} cannot be read ({error.strerror or error})", _NOT_READ, _AGAIN) from error
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not an object")
    header.pop("__metadata__", None)
    begin = LENGTH_BYTES + length
    entries = {name: _entry(path, name, value, begin) for name, value in header.items()}
    _refuse_gaps(path, entries, begin, size)
    return Shard(path, begin, entries)


def read_tensor(path: Path, entry: Entry) -> "Tensor":
    """One tensor of a shard, in new memory on the CPU.

    Raises:
        NestQuantError: the file ends before the tensor does, or cannot be read.
    """
    return _read(path, entry, 0, math.prod(entry.shape)).view(entry.shape)


def read_part(path: Path, entry: Entry, index: int, parts: int) -> "Tensor":
    """As `read_tensor`, part `index` of `parts` equal ones along dimension 0; no more of the file is read."""
    shape = (entry.shape[0] // parts, *entry.shape[1:])
    if isinstance(entry, ComputedEntry) and shape[0] == 1:
        return entry.part(index)
    return _read(path, entry, index * math.prod(shape), math.prod(shape)).view(shape)


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """All tensors of a shard by name, in new memory on the CPU.

    Raises:
        NestQuantError: missing, truncated, or not a valid safetensors file.
    """
    return {name: read_tensor(path, entry) for name, entry in read_shard(path).entries.items()}


def same_values(one: tuple[Path, Entry], other: tuple[Path, Entry], dtype: "torch.dtype") -> bool:
    """Whether two tensors, each by file and entry, are equal in shape and, as `dtype`, in every entry; read in pieces.

    Raises:
        NestQuantError: a file ends before its tensor does, or cannot be read.
    """
    import torch

    entries = math.prod(one[1].shape)
    return one[1].shape == other[1].shape and all(
        torch.equal(*(_read(*tensor, first, min(PIECE, entries - first)).to(dtype) for tensor in (one, other)))
        for first in range(0, entries, PIECE)
    )


def _read(path: Path, entry: Entry, first: int, count: int) -> "Tensor":
    """Entries `first` to `first + count` of a tensor in a file, (count,) on the CPU."""
    import torch

    if isinstance(entry, ComputedEntry):
        return entry.compute().view(-1)[first : first + count]
    dtype = getattr(torch, entry.dtype)
    data = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
    try:
        with open(path, "rb") as file:
            file.seek(entry.start + first * dtype.itemsize)
            read = file.readinto(bytes_of(data))
    except OSError as error:
        raise NestQuantError(f"{path} cannot be read ({error.strerror or error})", _NOT_READ, _AGAIN) from error
    if read != len(data):
        raise NestQuantError(f"{path} was cut short while it was read", _NOT_READ, _AGAIN)
    return data.view(dtype)


def hash_tensor(path: Path, entry: Entry) -> str:
    """Hex SHA-256 of a tensor's bytes in its file, read in pieces."""
    digest = hashlib.sha256()
    left = entry.bytes
    with open(path, "rb") as file:
        file.seek(entry.start)
        while left and (chunk := file.read(min(left, HASH_CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def bytes_of(tensor: "Tensor") -> memoryview:
    """The bytes of a tensor in memory order: of a contiguous one on the CPU its memory itself, else those of a copy."""
    import torch

    view: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(view)


def _entry(path: Path, name: str, value: Any, begin: int) -> Entry:
    fields = value if isinstance(value, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES or not _naturals(shape) or not _naturals(offsets):
        raise _damaged(path, f"its header has no usable dtype, shape and place for {name}")
    assert isinstance(shape, list) and isinstance(offsets, list)
    torch_name, item = DTYPES[dtype]
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * item:
        raise _damaged(path, f"the shape and the bytes of {name} disagree")
    text = json.dumps({name: value}, separators=(",", ":"), ensure_ascii=False)
    written = len(text.encode("utf-8", "surrogatepass")) - 1  # a comma in place of two braces
    return Entry(torch_name, tuple(shape), begin + offsets[0], offsets[1] - offsets[0], written)


def _refuse_gaps(path: Path, entries: dict[str, Entry], begin: int, size: int) -> None:
    end = begin
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].bytes)):
        if entry.start != end:
            raise _damaged(path, f"the bytes of {name} do not follow those before")
        end += entry.bytes
    if end != size:
        state = "truncated" if size < end else "too long"
        raise NestQuantError(f"{path} is {state} ({size} of {end} bytes)", _NOT_READ, _AGAIN)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _damaged(path: Path, what: str) -> NestQuantError:
    return NestQuantError(f"{path} is damaged: {what}", _NOT_READ, _AGAIN)
