"""Head vectors of keys and values, rotated and packed one by one.

A vector is divided by its root mean square and coded; what is stored is its words followed by the two bytes of its
bfloat16 scale. Reading is a pure function of these bytes: the entries of the un-rotated integers are exact sums in
float32, and each is multiplied by one factor.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import NestQuantError
from ..kernels import for_device
from ..lattice.code import BLOCK, row_bytes
from ..rotation.transform import rotation
from .fit import ScaledCode

SCALE_BYTES = 2


@dataclass(frozen=True)
class CacheCodes:
    """Codes of one layer's keys and values."""

    keys: ScaledCode
    values: ScaledCode


def vector_bytes(head_size: int, scaled: ScaledCode) -> int:
    """Bytes of one packed head vector."""
    return row_bytes(head_size, scaled.code.word_bits) + SCALE_BYTES


def pack_heads(x: Tensor, scaled: ScaledCode, seed: int) -> Tensor:
    """Codes head vectors.

    Args:
        x: (..., head size) floating point, head size a multiple of 8.
        scaled: the code.
        seed: of the rotation signs.

    Returns:
        (..., row bytes + 2) uint8.
    """
    return _pack(x, scaled, seed, restore=False)[0]


def round_heads(x: Tensor, scaled: ScaledCode, seed: int) -> tuple[Tensor, Tensor]:
    """`pack_heads` and what `unpack_heads` makes of it in the dtype of x, without reading the words again."""
    packed, rounded = _pack(x, scaled, seed, restore=True)
    return packed, unpack_heads(packed, x.shape[-1], scaled, seed, x.dtype) if rounded is None else rounded.to(x.dtype)


def _pack(x: Tensor, scaled: ScaledCode, seed: int, restore: bool) -> tuple[Tensor, Tensor | None]:
    """Packed vectors and, if asked for and at hand, what they decode to in float32."""
    head_size = x.shape[-1]
    flat = x.detach().reshape(-1, head_size)  # rounding has no gradient
    size = vector_bytes(head_size, scaled)
    if x.device.type == "cpu":
        from ..kernels import cpu_cache

        packed, rounded = cpu_cache.encode(flat, scaled.code, scaled.unit, seed, restore)
        return packed.view(*x.shape[:-1], size), None if rounded is None else rounded.view(x.shape)
    return _pack_anywhere(flat, scaled, seed).view(*x.shape[:-1], size), None


def _pack_anywhere(flat: Tensor, scaled: ScaledCode, seed: int) -> Tensor:
    """Vectors (rows, head size) to (rows, bytes) on any device."""
    rotated = rotation(flat.shape[1], seed).apply(flat)
    stored = scaled.row_scale(rotated).to(torch.bfloat16)
    stored = torch.where(stored > 0, stored, torch.ones_like(stored))  # what rounds to zero is coded as zeros times 1
    kernels = for_device(flat.device)
    v, index, _ = kernels.quantize(rotated, stored.float(), scaled.code)
    words = kernels.pack(v, index, scaled.code)
    return torch.cat([words, stored[:, None].view(torch.uint8)], dim=1)


def unpack_heads(packed: Tensor, head_size: int, scaled: ScaledCode, seed: int, dtype: torch.dtype) -> Tensor:
    """The inverse of `pack_heads` up to the rounding: (..., bytes) uint8 to (..., head size) of `dtype`."""
    flat = packed.reshape(-1, packed.shape[-1])
    shape = (*packed.shape[:-1], head_size)
    if packed.device.type == "cpu":
        from ..kernels import cpu_cache

        return cpu_cache.decode(flat, head_size, scaled.code, seed).to(dtype).view(shape)
    return _unpack_anywhere(flat, head_size, scaled, seed).to(dtype).view(shape)


def _unpack_anywhere(flat: Tensor, head_size: int, scaled: ScaledCode, seed: int) -> Tensor:
    """Packed vectors (rows, bytes) to (rows, head size) float32 on any device."""
    width = row_bytes(head_size, scaled.code.word_bits)
    scale = flat[:, width:].contiguous().view(torch.bfloat16).float()
    v = for_device(flat.device).unpack(flat[:, :width], head_size, scaled.code)
    hadamard, diagonal = _factors(head_size, seed, flat.device)
    exact = v.to(hadamard.dtype) @ hadamard  # integers
    return exact.float() * (scale * diagonal)


@lru_cache(maxsize=64)
def _factors(head_size: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
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
