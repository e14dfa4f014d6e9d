"""Head vectors of keys and values, rotated and packed one by one.

A vector is rotated and packed by its code: its words, then its bfloat16 scale and what else the code stores. Reading is
a pure function of these bytes: where a vector has one scale, the entries of the un-rotated integers are exact sums in
float32, and each is multiplied by one factor. Codes with centers (`centered`) take vectors (…, heads, tokens, head
size), or a head's alone.
"""

import itertools
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from ..base.errors import NestQuantError
from ..codecs.nested.centered import CenteredCode, nested_code, own_centers
from ..codecs.vectors import Rounded, VectorCode
from ..e8.code import BLOCK
from ..rotation.transform import rotation


@dataclass(frozen=True)
class CacheCodes:
    """Codes of one layer's keys and values.

    Attributes:
        number: the same for equal codes; what operators in a graph, which take numbers, know them by.
    """

    keys: VectorCode
    values: VectorCode
    number: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        number = _numbers.setdefault(self, next(_free))
        _numbered[number] = self
        object.__setattr__(self, "number", number)

    def __reduce__(self) -> tuple[object, tuple[VectorCode, VectorCode]]:
        return CacheCodes, (self.keys, self.values)  # a number is one of its process

    @staticmethod
    def numbered(number: int, keys: bool) -> VectorCode:
        """The code of keys, or else of values, of the codes with this number."""
        codes = _numbered[number]
        return codes.keys if keys else codes.values


_free = itertools.count()
_numbers: dict[CacheCodes, int] = {}
_numbered: dict[int, CacheCodes] = {}


def pack_heads(x: Tensor, scaled: VectorCode, seed: int | None) -> Tensor:
    """Codes head vectors.

    Args:
        x: (..., head size) floating point, head size a multiple of 8.
        scaled: the code.
        seed: seed of the rotation signs; None does not rotate.

    Returns:
        (..., bytes) uint8.
    """
    return _pack(x, scaled, seed, restore=False)[0]


def round_heads(x: Tensor, scaled: VectorCode, seed: int | None) -> tuple[Tensor, Tensor]:
    """`pack_heads` and what `unpack_heads` makes of it in the dtype of x, without reading the words again."""
    packed, rounded = _pack(x, scaled, seed, restore=True)
    return packed, unpack_heads(packed, x.shape[-1], scaled, seed, x.dtype) if rounded is None else rounded.to(x.dtype)


def _pack(x: Tensor, scaled: VectorCode, seed: int | None, restore: bool) -> tuple[Tensor, Tensor | None]:
    """Packed vectors and, if asked for and at hand, what they decode to in float32."""
    head_size = x.shape[-1]
    flat = x.detach().reshape(-1, head_size)  # rounding has no gradient
    size = scaled.vector_bytes(head_size)
    nested, run = nested_code(scaled), x.shape[-2] if x.dim() > 1 else 1
    if x.device.type == "cpu" and nested is not None and seed is not None:
        from ..kernels.cpu import cache as cpu_cache

        centers = centers_of(scaled, head_size, seed)
        packed, rounded = cpu_cache.encode(flat, nested.code, nested.unit, seed, restore, centers, run)
        return packed.view(*x.shape[:-1], size), None if rounded is None else rounded.view(x.shape)
    rotated = rotation(head_size, seed).apply(flat)
    packed = scaled.pack(rotated, run) if isinstance(scaled, CenteredCode) else scaled.pack(rotated)
    return packed.view(*x.shape[:-1], size), None


def unpack_heads(packed: Tensor, head_size: int, scaled: VectorCode, seed: int | None, dtype: torch.dtype) -> Tensor:
    """The inverse of `pack_heads` up to the rounding: (..., bytes) uint8 to (..., head size) of `dtype`."""
    flat = packed.reshape(-1, packed.shape[-1])
    shape = (*packed.shape[:-1], head_size)
    nested, run = nested_code(scaled), packed.shape[-2] if packed.dim() > 1 else 1
    if packed.device.type == "cpu" and nested is not None and seed is not None:
        from ..kernels.cpu import cache as cpu_cache

        centers = centers_of(scaled, head_size, seed)
        return cpu_cache.decode(flat, head_size, nested.code, seed, centers, run).to(dtype).view(shape)
    return _unpack_anywhere(flat, head_size, scaled, seed, run).to(dtype).view(shape)


def centers_of(scaled: VectorCode, head_size: int, seed: int | None) -> Tensor | None:
    """The centers of a code in the basis of the heads, (heads, head size) float32; None where it has none."""
    return _turned_centers(scaled, head_size, seed, "cpu") if isinstance(scaled, CenteredCode) else None


@lru_cache(maxsize=4096)
def _turned_centers(code: CenteredCode, head_size: int, seed: int | None, device: str) -> Tensor:
    with torch.inference_mode(False):
        return _turned_back(code.centers(head_size), seed).to(device)


def _unpack_anywhere(flat: Tensor, head_size: int, scaled: VectorCode, seed: int | None, run: int = 1) -> Tensor:
    """Packed vectors (rows, bytes) to (rows, head size) float32 on any device."""
    if not isinstance(scaled, CenteredCode):
        return _turned_back(scaled.unpack(flat, head_size), seed)
    marked, rest = scaled.split(flat, head_size)
    centers = _turned_centers(scaled, head_size, seed, str(flat.device))
    return _turned_back(rest, seed) + marked[:, None] * own_centers(centers, len(flat), run)


def _turned_back(found: Rounded, seed: int | None) -> Tensor:
    """Rounded vectors (rows, head size) in the basis of the heads, float32."""
    head_size = found.values.shape[1]
    if found.scale is None:
        return rotation(head_size, seed).inverse(found.values)
    hadamard, diagonal = _factors(head_size, seed, found.values.device)
    exact = found.values.to(hadamard.dtype) @ hadamard  # integers
    return exact.float() * (found.scale[:, None] * diagonal)


@lru_cache(maxsize=64)
def _factors(head_size: int, seed: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """R = H·diag(d): H of ±1 and 0 in float64, as products in float32 may be rounded to TF32, and d in float32."""
    which = rotation(head_size, seed)
    with torch.inference_mode(False):
        dense = which.matrix()
        size = dense.abs().amax(0)
        hadamard = dense.sign()
    return hadamard.double().to(device), size.to(device)


def check_head_size(size: int) -> None:
    """Raises NestQuantError for a head size that blocks of 8 do not divide."""
    if size % BLOCK:
        raise NestQuantError(
            f"the head size {size} is not a multiple of {BLOCK}",
            "keys and values cannot be quantized",
            "quantize with --kv-bits 16",
        )


def refuse_other_heads(scaled: VectorCode, states: Tensor) -> None:
    """Raises NestQuantError where centers are not those of states (batch, heads, tokens, head size)."""
    if not isinstance(scaled, CenteredCode):
        return
    heads, size = states.shape[1], states.shape[-1]
    if len(scaled.packed) != heads or len(scaled.packed[0]) != scaled.vector_bytes(size):
        raise NestQuantError(
            f"config.json has no centers for {heads} heads of size {size}",
            "keys cannot be packed",
            "fetch or quantize the checkpoint again",
        )
