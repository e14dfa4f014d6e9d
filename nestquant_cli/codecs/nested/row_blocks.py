"""Rounds matrices to nested codes one block of rows after the other, with feedback from row to row."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...parallel.tiles import product
from ...quantization.factors import RowFeedback
from ...quantization.row_feedback import row_blocks

Found = tuple[Tensor, Tensor, Tensor, list[int]]  # v, multiplier index, row scale and clipped blocks per matrix


def by_row_blocks(
    target: Tensor, rows: list[int], across: RowFeedback, round_some: Callable[[Tensor, list[int]], Found]
) -> Found:
    """Rounds matrices stacked into one target (m, n), with rows[i] rows each.

    Args:
        target: (m, n) float32, the matrices one below the other.
        rows: number of rows of each matrix.
        across: order of the rows, and what is fed from one to the other.
        round_some: rounds some rows (count, n), each as a matrix of its own, given [1] * count.

    Returns:
        what `rounding.round_rows` returns for the whole.
    """
    m = len(target)
    ordered = target[across.order]
    error = torch.zeros_like(ordered)  # W̃ − Ŵ, zero where not yet rounded
    parts: list[Found] = []
    for block in row_blocks(m):
        some = ordered[block]
        if block.stop < m:
            some = some + product(across.lower[block.stop :, block].t(), error[block.stop :])
        v, index, scale, clipped = round_some(some, [1] * len(some))
        error[block] = ordered[block] - v.float() * scale[:, None]
        parts.append((v, index, scale, clipped))
    parts.reverse()
    back = across.order.argsort()
    v, index, scale = (torch.cat(each)[back] for each in list(zip(*parts, strict=True))[:3])
    clipped_rows = torch.tensor([count for part in parts for count in part[3]])[back.cpu()]
    return v, index, scale, [int(part.sum()) for part in clipped_rows.split(rows)]
