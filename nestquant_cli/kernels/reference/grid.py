"""Tokens rotated and rounded to plain int8 in plain torch, each in steps of a power of four that is its own."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...rotation.transform import rotation
from ..contract.constants import EMPTY, INFINITE, LARGEST, LEAST_POWER, MOST_POWER


def to_grid(x: Tensor, order: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rotates tokens and rounds each to int8 multiples of 2^exponent: `contract.inputs.to_grid` with torch's own
    operations, of which `torch.frexp` gives the exponent exactly."""
    y = rotation(order, seed).apply(F.pad(x.float(), (0, order - x.shape[1])))
    size = y.abs().amax(-1)  # (tokens,)
    exponent = torch.frexp(size / LARGEST).exponent
    exponent = (exponent + exponent % 2).clamp(LEAST_POWER, MOST_POWER)
    v = torch.ldexp(y, -exponent[:, None]).nan_to_num().round().clamp(-LARGEST, LARGEST).to(torch.int8)
    exponent = torch.where(size == 0, EMPTY, torch.where(size.isfinite(), exponent, INFINITE))
    return v, exponent.to(torch.int8)
