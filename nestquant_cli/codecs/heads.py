"""Head vectors of keys and values, rotated and packed one by one.

A vector is divided by its root mean square and coded; what is stored is its words followed by the two bytes of its
bfloat16 scale.
"""

from dataclasses import dataclass

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


def pack_heads(x: Tensor, scaled: ScaledCode, seed: int) -> Tensor:
    """Codes head vectors.

    Args:
        x: (..., head size) floating point, head size a multiple of 8.
        scaled: the code.
        seed: of the rotation signs.

    Returns:
        (..., row bytes + 2) uint8.
    """
    flat = x.detach().reshape(-1, x.shape[-1])  # rounding has no gradient
    rotated = rotation(x.shape[-1], seed).apply(flat)
    stored = scaled.row_scale(rotated).to(torch.bfloat16)
    kernels = for_device(x.device)
    v, index, _ = kernels.quantize(rotated, stored.float(), scaled.code)
    words = kernels.pack(v, index, scaled.code)
    packed = torch.cat([words, stored[:, None].view(torch.uint8)], dim=1)
    return packed.view(*x.shape[:-1], packed.shape[1])


def unpack_heads(packed: Tensor, head_size: int, scaled: ScaledCode, seed: int, dtype: torch.dtype) -> Tensor:
    """The inverse of `pack_heads` up to the rounding: (..., bytes) uint8 to (..., head size) of `dtype`."""
    flat = packed.reshape(-1, packed.shape[-1])
    width = row_bytes(head_size, scaled.code.word_bits)
    scale = flat[:, width:].contiguous().view(torch.bfloat16).float()
    v = for_device(packed.device).unpack(flat[:, :width], head_size, scaled.code)
    return rotation(head_size, seed).inverse(v.float() * scale).to(dtype).view(*packed.shape[:-1], head_size)


def check_head_size(size: int) -> None:
    """Raises NestQuantError for a head size that blocks of 8 do not divide."""
    if size % BLOCK:
        raise NestQuantError(
            f"the head size {size} is not a multiple of {BLOCK}",
            "keys and values cannot be quantized",
            "quantize with --kv-bits 16",
        )
