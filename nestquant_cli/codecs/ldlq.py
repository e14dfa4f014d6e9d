"""QA-LDLQ: rounding with linear feedback for a layer whose input is quantized too (arXiv 2502.09720, §4.5).

The rounded weight Ŵ multiplies x + z, with z the rounding noise of the input. The target and the metric follow from
minimising E‖Ŵ(x + z) − W x‖² for z uncorrelated with x:

    W̃ = W H (H + J)⁻¹,   then   tr (Ŵ − W̃)(H + J)(Ŵ − W̃)ᵀ → min

which block LDLQ does eight columns at a time, last block first (QuIP#, arXiv 2402.04396, §4).

Where the layers before are quantized already, x is not the input x₀ that the original model has in its place. From
E‖Ŵ(x + z) − W x₀‖² follows W̃ = W E[x₀ xᵀ] (H + J)⁻¹, and the rest stays (asymmetric calibration, arXiv 2504.02692).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..base.device import on_host
from ..e8.code import BLOCK
from ..parallel.tiles import product, set_own_threads

# Columns whose feedback is applied at once, as one matrix product. What is left for the small products of single blocks
# is PANEL/n of the feedback, 3 % for 4,096 columns.
PANEL = 128
# Rows from which the steps of single blocks use several threads. Below it a step has at most 4096·8·PANEL, 4 million
# multiply-adds, and on a busy machine waiting for a second thread takes longer than that.
MANY_ROWS = 4096
RoundBlock = Callable[[Tensor, int], Tensor]


def ldlq(
    W: Tensor,
    lower: Tensor | None,
    round_block: RoundBlock,
    columns: int = BLOCK,
    panel: int | None = None,
    begin: Callable[[Tensor, int], None] = lambda target, start: None,
) -> Tensor:
    """Rounds the columns of W with feedback:

        Ŵ_k = Q(W_k + Σ_{j>k} (W_j − Ŵ_j) L_jk),   block k from the last to the first

    With one column at a time this is GPTQ from the last column to the first. Columns are not reordered by activation.
    Coordinate descent after it (QuantEase) would take 4 to 5 % off the error
    of a matrix, the search over rows takes off 6 to 13 %, so only that is built in.

    Args:
        W: (m, n) float32, the target.
        lower: (n, n) float32, L of `factors.Feedback`; None rounds without feedback.
        round_block: takes a target (m, columns) float32 and the number of its block, returns the rounded values.
        columns: columns that are rounded at once.
        panel: columns between two calls of `begin`, a multiple of `columns`; None takes PANEL.
        begin: called with the target (m, width) of a panel and its first column before any of the panel is rounded.

    Returns:
        the rounded matrix (m, n) float32.
    """
    n = W.shape[1]
    rounded = torch.empty_like(W)
    error = torch.zeros_like(W)  # W − Ŵ, zero where not yet rounded
    panel = panel or PANEL
    for end in range(n, 0, -panel):
        start = max(0, end - panel)
        carried = W[:, start:end]
        if lower is not None:
            carried = carried + product(error[:, end:], lower[end:, start:end])
        begin(carried, start)
        with _threads_for(W):
            for left in range(end - columns, start - 1, -columns):
                right = left + columns
                target = carried[:, left - start : right - start]
                if lower is not None and right < end:
                    target = target + error[:, right:end] @ lower[right:end, left:right]
                rounded[:, left:right] = round_block(target, left // columns)
                error[:, left:right] = W[:, left:right] - rounded[:, left:right]
    return rounded


@contextmanager
def _threads_for(W: Tensor) -> Iterator[None]:
    """Within it torch uses one thread where W has few rows: on a busy machine threads would wait for each other's time
    slices."""
    threads = torch.get_num_threads()
    if not on_host(W.device) or W.shape[0] >= MANY_ROWS or threads == 1:
        yield
        return
    set_own_threads(1)
    try:
        yield
    finally:
        set_own_threads(threads)
