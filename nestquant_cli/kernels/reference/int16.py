"""Int8 rows times tokens as integers of 16 bits in plain torch, on any device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...rotation.seeds import Seed
from ..contract.constants import LARGEST_INT16, LEAST_SIZE
from ..int8 import integer_product
from .inputs import rotate_tokens


def to_int16(x: Tensor, order: int, seed: Seed | None) -> tuple[Tensor, Tensor]:
    """Rotates tokens and rounds each to multiples of its scale: `contract.inputs.to_int16`.

    Returns:
        int16 (tokens, order), and the scale (tokens,) float32.
    """
    rotated = rotate_tokens(x.float(), order, seed).float()
    return round_rotated(rotated)


def round_rotated(rotated: Tensor) -> tuple[Tensor, Tensor]:
    """The same for tokens (tokens, order) float32 that are rotated."""
    size = rotated.abs().amax(-1) if len(rotated) else rotated.new_zeros(0)
    taken = size.isfinite() & (size >= LEAST_SIZE)
    largest = torch.full_like(size, LARGEST_INT16)  # a number divided by a tensor is multiplied by its inverse
    factor = torch.where(taken, largest / size, 0.0)
    values = torch.where(taken[:, None], rotated, 0.0) * factor[:, None]
    scale = torch.where(taken, size / largest, torch.where(size.isfinite(), 0.0, torch.nan))
    return values.round().to(torch.int16), scale


def int16_product(tokens: Tensor, scale: Tensor, v: Tensor, row_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """diag(row_scale)·V X by exact sums: `contract.products.int16_product`."""
    high = (tokens.int() + 128) >> 8
    low = tokens.int() - (high << 8)
    matrix = F.pad(v, (0, -v.shape[1] % 8))
    padded = (F.pad(digit.to(torch.int8), (0, -v.shape[1] % 8)) for digit in (high, low))
    upper, lower = (integer_product(digit, matrix).float() for digit in padded)
    return ((upper * 256 + lower) * scale[:, None] * row_scale.view(torch.bfloat16).float()).to(dtype)
