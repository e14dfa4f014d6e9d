"""Rotating vectors of integers back, exactly.

R = H·diag(d) with a matrix H of ±1 and 0, so the sums vᵀH of integers v are integers. Below 2²⁴ they are exact in
float32, and each entry is then multiplied by one factor: whatever sums in whatever order comes to the same bits.
"""

from functools import lru_cache

import torch
from torch import Tensor

from .transform import rotation


def unrotate_integers(v: Tensor, scale: Tensor, seed: int | None) -> Tensor:
    """Rᵀ (scale·v) for each row.

    Args:
        v: (rows, n) int8 or int16.
        scale: (rows,) float32, the size of v = 1.
        seed: seed of the rotation signs; None does not rotate.

    Returns:
        (rows, n) float32, on the device of v.
    """
    hadamard, diagonal = _factors(v.shape[1], seed, v.device)
    exact = v.to(hadamard.dtype) @ hadamard  # integers
    return exact.float() * (scale[:, None] * diagonal)


@lru_cache(maxsize=64)
def _factors(order: int, seed: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """H in float64, since products in float32 may be rounded to TF32, and d in float32."""
    with torch.inference_mode(False):
        dense = rotation(order, seed).matrix()
        size = dense.abs().amax(0)
        hadamard = dense.sign()
    return hadamard.double().to(device), size.to(device)
