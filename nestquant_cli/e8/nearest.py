"""Nearest point of the Gosset lattice E8 = D8 ∪ (D8 + ½) (Conway & Sloane, IEEE Trans. IT 28(2), 1982).

Lattice vectors are kept in *doubled* coordinates u = 2t: integers, all even or all odd, with Σu ≡ 0 (mod 4).

Both cosets share one rounding. With r = t − round(t), the residual of the half-integer coset has |r'| = ½ − |r|, so
its distance follows from Σ|r| and its parity from the number of negative r.
"""

import torch
from torch import Tensor


def nearest_point(t: Tensor, other: bool = False) -> Tensor:
    """Nearest E8 point of each vector, or with `other` the nearest one of the other coset of D8.

    The search over rows branches to both for codes of at most three multipliers.

    Args:
        t: (..., 8) floating point; finite and below 2²² in magnitude.
        other: whether to return the nearest point of the other coset of D8, the one that the nearest point is not in.

    Returns:
        (..., 8) int32, doubled coordinates of a nearest lattice point.
    """
    n = torch.floor(t + 0.5)  # (..., 8), D8 candidate before its parity is repaired
    r = t - n
    a = r.abs()
    negative = r < 0
    odd_even = n.sum(-1).remainder(2) != 0  # parity of the integer coset
    odd_half = odd_even ^ (negative.sum(-1).remainder(2) != 0)

    worst, worst_at = a.max(-1)  # flipping costs (1 − |r|)² − |r|² = 1 − 2|r|
    best, best_at = a.min(-1)  # in the other coset |r'| = ½ − |r|, so the flip costs 2|r|
    square = (r * r).sum(-1)
    even_distance = square + odd_even * (1 - 2 * worst)
    half_distance = square - a.sum(-1) + 2 + odd_half * (2 * best)

    step = torch.where(negative, -1, 1).to(torch.int32)
    even = 2 * n.to(torch.int32)
    half = even + step  # n + ½ when r ≥ 0, n − ½ when r < 0
    even = _shift(even, worst_at, 2 * step, odd_even)
    half = _shift(half, best_at, -2 * step, odd_half)
    take = half_distance < even_distance
    return torch.where((~take if other else take)[..., None], half, even)


def _shift(u: Tensor, at: Tensor, step: Tensor, where: Tensor) -> Tensor:
    """Adds step[at] to u[at] along the last axis wherever `where` holds."""
    change = step.gather(-1, at[..., None]) * where[..., None]
    return u.scatter_add(-1, at[..., None], change)


def is_lattice_vector(u: Tensor) -> Tensor:
    """Whether each (..., 8) integer vector is a point of E8 in doubled coordinates; returns (...) bool."""
    parity = u.remainder(2)
    same = (parity == parity[..., :1]).all(-1)
    return same & (u.sum(-1).remainder(4) == 0)
