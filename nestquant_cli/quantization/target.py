"""The target of QA-LDLQ: the weight that is right for the noisy input (arXiv 2502.09720, §4.5).

    W̃ = W H (H + J)⁻¹

A matrix whose product is added to the residual stream may also correct the stream's error, W̃ + D (H + J)⁻¹.

The damped H is H + J less J, so the same is W − W J (H + J)⁻¹: the noise is a diagonal, and the correction is small.
"""

import torch
from torch import Tensor

from ..parallel.tiles import product, run_pieces, slices


def noisy_target(
    W: Tensor, noise: Tensor, C: Tensor, cross: Tensor | None, added: float, residual: Tensor | None = None
) -> Tensor:
    """The target W̃ (m, n) float32; W itself where there is neither noise nor another input, nor a residual.

    With m < n the rows are solved for, m·n² operations; otherwise (H + J)⁻¹ is computed once and multiplied, which is
    the cheaper way.

    Args:
        W: (m, n) float32.
        noise: (n,) diagonal of J.
        C: (n, n) float64, the Cholesky factor of the damped H + J.
        cross: (n, n) X in place of H, `InputStatistics.cross`; None where it is H.
        added: what damping added to the diagonal of H; it is added to the diagonal of X as well.
        residual: (m, n) D, `InputStatistics.residual`; None for none.
    """
    target = _of_input(W, noise, C, cross, added)
    return target if residual is None else target + _over_rows(residual, C)


def _of_input(W: Tensor, noise: Tensor, C: Tensor, cross: Tensor | None, added: float) -> Tensor:
    """The target without a residual."""
    if cross is not None:
        behind = _behind(cross, added, C)
        return product(W, behind)
    if not noise.any():
        return W
    noisy = W * noise
    if len(W) >= len(C):
        return W - product(noisy, inverse(C).float())
    return W - _over_rows(noisy, C)


def _behind(cross: Tensor, added: float, C: Tensor) -> Tensor:
    """X (H + J)⁻¹ (n, n) float32, X damped by `added`."""
    damped = cross.clone()
    damped.diagonal().add_(added)
    return _over_rows(damped, C)


def _over_rows(rows: Tensor, C: Tensor) -> Tensor:
    """Rows (m, n) times (H + J)⁻¹, float32, from the Cholesky factor C of H + J."""
    solved = torch.empty_like(rows, dtype=torch.float32)

    def some(part: slice) -> None:
        solved[part] = torch.cholesky_solve(rows[part].double().t().contiguous(), C).t().float()

    run_pieces(some, slices(len(rows), C.device))
    return solved


def inverse(C: Tensor) -> Tensor:
    """(C Cᵀ)⁻¹ (n, n) float64, symmetric to the bit, from C lower triangular."""
    n = len(C)
    whole = torch.empty_like(C)

    def columns(part: slice) -> None:
        # rows above the piece are known by symmetry, so those rows of C are not needed
        unit = torch.eye(n - part.start, part.stop - part.start, dtype=C.dtype, device=C.device)
        solved = torch.cholesky_solve(unit, C[part.start :, part.start :])
        width = part.stop - part.start
        whole[part.start :, part] = solved
        whole[part, part.start :] = solved.t()
        whole[part, part] = (solved[:width] + solved[:width].t()) / 2

    run_pieces(columns, slices(n, C.device))
    return whole
