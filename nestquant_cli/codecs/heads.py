"""Head vectors of keys and values, rotated and packed one by one.

A vector is rotated and packed by its code: its words, then its bfloat16 scale and what else the code stores. Reading is
a pure function of these bytes: where a vector has one scale, the entries of the un-rotated integers are exact sums in
float32, and each is multiplied by one factor.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import NestQuantError
from ..lattice.code import BLOCK
from ..rotation.transform import rotation
from .fit import ScaledCode
from .protocol import VectorCode


@dataclass(frozen=True)
class CacheCodes:
    """Codes of one layer's keys and values."""

    keys: VectorCode
    values: VectorCode


def pack_heads(x: Tensor, scaled: VectorCode, seed: int | None) -> Tensor:
    """Codes head vectors.

    Args:
        x: (..., head size) floating point, head size a multiple of 8.
        scaled: the code.
        seed: of the rotation signs; None does not rotate.

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
    if x.device.type == "cpu" and isinstance(scaled, ScaledCode) and seed is not None:
        from ..kernels import cpu_cache

        packed, rounded = cpu_cache.encode(flat, scaled.code, scaled.unit, seed, restore)
        return packed.view(*x.shape[:-1], size), None if rounded is None else rounded.view(x.shape)
    return scaled.pack(rotation(head_size, seed).apply(flat)).view(*x.shape[:-1], size), None


def unpack_heads(packed: Tensor, head_size: int, scaled: VectorCode, seed: int | None, dtype: torch.dtype) -> Tensor:
    """The inverse of `pack_heads` up to the rounding: (..., bytes) uint8 to (..., head size) of `dtype`."""
    flat = packed.reshape(-1, packed.shape[-1])
    shape = (*packed.shape[:-1], head_size)
    if packed.device.type == "cpu" and isinstance(scaled, ScaledCode) and seed is not None:
        from ..kernels import cpu_cache

        return cpu_cache.decode(flat, head_size, scaled.code, seed).to(dtype).view(shape)
    return _unpack_anywhere(flat, head_size, scaled, seed).to(dtype).view(shape)


def _unpack_anywhere(flat: Tensor, head_size: int, scaled: VectorCode, seed: int | None) -> Tensor:
    """Packed vectors (rows, bytes) to (rows, head size) float32 on any device."""
    found = scaled.unpack(flat, head_size)
    if found.scale is None:
        return rotation(head_size, seed).inverse(found.values)
    hadamard, diagonal = _factors(head_size, seed, flat.device)
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
