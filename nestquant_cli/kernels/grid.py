"""Tokens rotated and rounded to plain int8, each in steps of a power of four that is its own."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rotation.transform import rotation
from .cpu import inputs as cpu_input
from .grid_limits import EMPTY, INFINITE, LARGEST, LEAST_POWER, MOST_POWER


def to_grid(x: Tensor, order: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rotates tokens x (tokens, features) and rounds each to int8 multiples of 2^exponent.

    Returns:
        v (tokens, order) int8 and exponent (tokens,) int8: the least even one for which no entry is beyond ±127, EMPTY
        for a token of zeros, INFINITE for one that is not finite.
    """
    if x.device.type == "cpu":
        rounded = cpu_input.to_grid(x, order, seed)
        if rounded is not None:
            return rounded
    y = rotation(order, seed).apply(F.pad(x.float(), (0, order - x.shape[1])))
    size = y.abs().amax(-1)  # (tokens,)
    exponent = torch.frexp(size / LARGEST).exponent
    exponent = (exponent + exponent % 2).clamp(LEAST_POWER, MOST_POWER)
    v = torch.ldexp(y, -exponent[:, None]).nan_to_num().round().clamp(-LARGEST, LARGEST).to(torch.int8)
    exponent = torch.where(size == 0, EMPTY, torch.where(size.isfinite(), exponent, INFINITE))
    return v, exponent.to(torch.int8)
