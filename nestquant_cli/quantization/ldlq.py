"""QA-LDLQ: rounding with linear feedback for a layer whose input is quantized too (arXiv 2502.09720, §4.5).

The rounded weight Ŵ multiplies x + z, with z the rounding noise of the input. The target and the metric follow from
minimising E‖Ŵ(x + z) − W x‖² for z uncorrelated with x:

    W̃ = W H (H + J)⁻¹,   then   tr (Ŵ − W̃)(H + J)(Ŵ − W̃)ᵀ → min

which block LDLQ does eight columns at a time, last block first (QuIP#, arXiv 2402.04396, §4).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NestQuantError
from ..lattice.code import BLOCK

PANEL = 128  # columns whose feedback is applied at once, as one matrix product
MANY_ROWS = 4096  # below it, a block's work is too small to be worth waiting for a second thread
LADDER = (1.0, 10.0, 100.0, 1000.0)  # damping is multiplied by these in turn until the Cholesky factorization succeeds

RoundBlock = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Feedback:
    """What LDLQ needs of one input.

    Attributes:
        target: (n, n) float32, the matrix T of W̃ = W T.
        lower: (n, n) float32, unit block-lower-triangular L of H + J = L D Lᵀ.
        damping: what was added to H, as a fraction of its mean diagonal.
    """

    target: Tensor
    lower: Tensor
    damping: float


def feedback(hessian: Tensor, noise: Tensor, damping: float, place: str) -> Feedback:
    """Factorizes H + J, damped by a ladder.

    Args:
        hessian: (n, n) H, n a multiple of 8.
        noise: (n,) diagonal of J.
        damping: first step of the ladder, as a fraction of the mean diagonal of H.
        place: name of the input, for the error.

    Raises:
        NestQuantError: H has no positive diagonal, or no step of the ladder makes H + J positive definite.
    """
    H = hessian.double()
    mean = float(H.diagonal().mean())
    if not mean > 0:
        raise NestQuantError(
            f"the input of {place} was zero on all calibration text", "nothing was quantized", "calibrate on other text"
        )
    for step in LADDER:
        damped = H + step * damping * mean * torch.eye(H.shape[0], dtype=H.dtype, device=H.device)
        noisy = damped + torch.diag(noise.double())
        C, failed = torch.linalg.cholesky_ex(noisy)
        if not failed:
            target = torch.cholesky_solve(damped, C).t()  # H (H + J)⁻¹ = ((H + J)⁻¹ H)ᵀ
            return Feedback(target.float(), unit_lower(C).float(), step * damping)
    raise NestQuantError(
        f"H + J of {place} is not positive definite even with damping {LADDER[-1] * damping:g}",
        "nothing was quantized",
        "raise --damping or calibrate on more text",
    )


def unit_lower(C: Tensor) -> Tensor:
    """L with H = L D Lᵀ, unit on its 8×8 diagonal blocks, from the Cholesky factor C of H (n, n)."""
    n = C.shape[0]
    blocks = C.view(n // BLOCK, BLOCK, n // BLOCK, BLOCK).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (n/8, 8, 8)
    columns = C.view(n, n // BLOCK, BLOCK).transpose(0, 1)  # (n/8, n, 8)
    return torch.linalg.solve_triangular(blocks, columns, upper=False, left=False).transpose(0, 1).reshape(n, n)


def ldlq(W: Tensor, lower: Tensor, round_block: RoundBlock) -> Tensor:
    """Rounds the columns of W with feedback.

    Args:
        W: (m, n) float32, the target.
        lower: (n, n) L of `Feedback`.
        round_block: takes a target (m, 8) float32 and the number of its block, returns the rounded values (m, 8).

    Returns:
        the rounded matrix (m, n) float32.
    """
    n = W.shape[1]
    rounded = torch.empty_like(W)
    error = torch.zeros_like(W)  # W − Ŵ, zero where not yet rounded
    for end in range(n, 0, -PANEL):
        start = max(0, end - PANEL)
        carried = W[:, start:end] + error[:, end:] @ lower[end:, start:end]
        with _threads_for(W):
            for left in range(end - BLOCK, start - 1, -BLOCK):
                right = left + BLOCK
                target = carried[:, left - start : right - start]
                if right < end:
                    target = target + error[:, right:end] @ lower[right:end, left:right]
                rounded[:, left:right] = round_block(target, left // BLOCK)
                error[:, left:right] = W[:, left:right] - rounded[:, left:right]
    return rounded


@contextmanager
def _threads_for(W: Tensor) -> Iterator[None]:
    """One thread for the small steps of a panel, which on a busy machine would wait for each other's time slices."""
    threads = torch.get_num_threads()
    if W.device.type != "cpu" or W.shape[0] >= MANY_ROWS or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
