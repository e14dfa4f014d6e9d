"""QA-LDLQ: rounding with linear feedback for a layer whose input is quantized too (arXiv 2502.09720, §4.5).

The rounded weight Ŵ multiplies x + z, with z the rounding noise of the input. The target and the metric follow from
minimising E‖Ŵ(x + z) − W x‖² for z uncorrelated with x:

    W̃ = W H (H + J)⁻¹,   then   tr (Ŵ − W̃)(H + J)(Ŵ − W̃)ᵀ → min

which block LDLQ does eight columns at a time, last block first (QuIP#, arXiv 2402.04396, §4).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..lattice.code import BLOCK
from ..tiles import product

PANEL = 128  # columns whose feedback is applied at once, as one matrix product
MANY_ROWS = 4096  # below it, a block's work is too small to be worth waiting for a second thread
RoundBlock = Callable[[Tensor, int], Tensor]


def ldlq(W: Tensor, lower: Tensor, round_block: RoundBlock) -> Tensor:
    """Rounds the columns of W with feedback.

    Args:
        W: (m, n) float32, the target.
        lower: (n, n) L of `factors.Feedback`.
        round_block: takes a target (m, 8) float32 and the number of its block, returns the rounded values (m, 8).

    Returns:
        the rounded matrix (m, n) float32.
    """
    n = W.shape[1]
    rounded = torch.empty_like(W)
    error = torch.zeros_like(W)  # W − Ŵ, zero where not yet rounded
    for end in range(n, 0, -PANEL):
        start = max(0, end - PANEL)
        carried = W[:, start:end] + product(error[:, end:], lower[end:, start:end])
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
