"""Voronoi codes: the classes of E8 / q·E8, each represented by its point in q times the Voronoi cell of E8.

A class has eight digits c = G⁻¹t mod q. Decoding is integer arithmetic throughout and a function of the *class* alone:
`reduce` maps every member of a class to the same representative, also where the point lies on a boundary of the cell.

On a boundary of the cell several lattice vectors are equally near. The rule: the representative of U (in doubled
coordinates) is U − qλ, λ the nearest lattice vector of (U + ε)/q with ε = (2⁻², 2⁻³, …, 2⁻⁹). No point U + ε lies on a
boundary, as no sum of different powers of two with signs is zero, and no offset reaches past another boundary. So

1. n_i = ⌊(U_i + q) / 2q⌋, r_i = U_i − 2q·n_i in [−q, q) and w_i = r_i + ε_i.
2. Integer coset: residual r; when Σn is odd, the entry of largest |w_i| is flipped: r_i ← r_i ∓ 2q for w_i ≷ 0.
3. Half-integer coset: residual s_i = r_i ∓ q for w_i ≷ 0; when Σn minus the count of negative w is odd, the entry of
   smallest |w_i| is flipped: s_i ← s_i ± 2q.
4. The nearer coset wins: the half-integer one if and only if
   4q − Σ|w| + [3 flips]·2·min|w| − [2 flips]·2(q − max|w|) < 0.

Nothing here is ever equal, so the order of the entries does not matter and every backend decides alike. Every step
looks at residuals only, so the rule commutes with translations by q·E8. A vector u represents its own class if and only
if reduce(u) = u, that is, if and only if u + ε satisfies the inequalities of the facets (see `gauge`).
"""

import torch
from torch import Tensor

# Rows of the generator in doubled coordinates, u = c·GENERATOR: 4e₁, 2(e_{i+1} − e_i)·(−1) …, and the all-ones vector.
GENERATOR = torch.tensor(
    [
        [4, 0, 0, 0, 0, 0, 0, 0],
        [-2, 2, 0, 0, 0, 0, 0, 0],
        [0, -2, 2, 0, 0, 0, 0, 0],
        [0, 0, -2, 2, 0, 0, 0, 0],
        [0, 0, 0, -2, 2, 0, 0, 0],
        [0, 0, 0, 0, -2, 2, 0, 0],
        [0, 0, 0, 0, 0, -2, 2, 0],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ],
    dtype=torch.int64,
)


def digits_of(u: Tensor, q: int) -> Tensor:
    """Digits c = G⁻¹t mod q of lattice vectors.

    Args:
        u: (..., 8) integer, doubled coordinates of E8 points.
        q: nesting ratio.

    Returns:
        (..., 8) int64 in 0 … q−1.
    """
    u = u.to(torch.int64)
    c = torch.empty_like(u)
    last = u[..., 7]
    c[..., 7] = last
    c[..., 6] = (u[..., 6] - last) // 2
    for i in range(5, 0, -1):
        c[..., i] = (u[..., i] - last) // 2 + c[..., i + 1]
    c[..., 0] = (u[..., 0] - last + 2 * c[..., 1]) // 4
    return c.remainder(q)


def point_of(digits: Tensor, q: int) -> Tensor:
    """The representative of the class with these digits: (..., 8) in 0 … q−1 to (..., 8) int32, doubled coordinates."""
    c = digits.to(torch.int64)
    last = c[..., 7:]
    u = 2 * c  # the rows of GENERATOR, applied without a matrix product
    u[..., 0] *= 2
    u[..., :6] -= 2 * c[..., 1:7]
    u[..., :7] += last
    u[..., 7:] = last
    return reduce(u.to(torch.int32), q)


def reduce(u: Tensor, q: int) -> Tensor:
    """Representative of u modulo q·E8 in q times the Voronoi cell, by the tie rule above.

    Args:
        u: (..., 8) int32, doubled coordinates.
        q: nesting ratio.

    Returns:
        (..., 8) int32, doubled coordinates.
    """
    n = torch.div(u + q, 2 * q, rounding_mode="floor")
    r = u - 2 * q * n  # in [−q, q)
    w = _UNIT * r + _offset(u)  # exact: in units of ε_8
    a = w.abs()
    side = torch.where(w < 0, -1, 1).to(u.dtype)
    odd_even = n.sum(-1).remainder(2)
    odd_half = (n.sum(-1) - (w < 0).sum(-1)).remainder(2)
    worst, worst_at = a.max(-1, keepdim=True)
    least, least_at = a.min(-1, keepdim=True)

    gap = _UNIT * 4 * q - a.sum(-1) + 2 * odd_half * least[..., 0] - 2 * odd_even * (_UNIT * q - worst[..., 0])
    half = (gap < 0)[..., None]
    shift = torch.where(half, -q * side, 0).to(u.dtype)
    at = torch.where(half, least_at, worst_at)
    flip = torch.where(half, odd_half[..., None], -odd_even[..., None]).to(u.dtype)
    return (r + shift).scatter_add(-1, at, 2 * q * flip * side.gather(-1, at))


_UNIT = 512  # 1 / ε_8


def _offset(like: Tensor) -> Tensor:
    """ε in units of ε_8: 128, 64, … 1."""
    return torch.bitwise_left_shift(1, torch.arange(7, -1, -1, device=like.device)).to(like.dtype)


def gauge(t: Tensor) -> Tensor:
    """The gauge of each vector: the smallest g ≥ 0 with t ∈ g·V, V the closed Voronoi cell of E8.

    The facets of V belong to the 240 minimal vectors, (±1, ±1, 0⁶) and (±½)⁸ with an even number of minus signs.

    Args:
        t: (..., 8) floating point, ordinary (not doubled) coordinates.

    Returns:
        (...) of t's dtype.
    """
    a = t.abs()
    top = a.topk(2, dim=-1).values.sum(-1)
    odd = (t < 0).sum(-1).remainder(2) != 0
    half = (a.sum(-1) - 2 * odd * a.min(-1).values) / 2
    return torch.maximum(top, half)
