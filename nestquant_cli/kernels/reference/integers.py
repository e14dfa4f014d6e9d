"""Tokens rotated and rounded to integers of a few bits in plain torch, each on a grid of its own."""

import torch
from torch import Tensor

from ...rotation.seeds import Seed
from .inputs import rotate_tokens


def to_integers(x: Tensor, order: int, seed: Seed | None, bits: int, clip: float) -> tuple[Tensor, Tensor]:
    """Rotates tokens and rounds each to symmetric integers: `contract.inputs.to_integers`."""
    y, levels = rotate_tokens(x, order, seed).float(), 1 << bits
    size = y.abs().amax(1, keepdim=True)  # (tokens, 1)
    scale = (size * clip / (levels // 2 - 1)).to(torch.bfloat16).float()
    scale = torch.where(scale == 0, 1, torch.where(size.isfinite(), scale, torch.nan))
    v = (y / scale).nan_to_num().round().clamp(-(levels // 2), levels // 2 - 1)
    return v.to(torch.int8), scale[:, 0]
