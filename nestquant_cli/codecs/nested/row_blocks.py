"""Rounds matrices to nested codes one block of rows after the other, with feedback from row to row."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...parallel.tiles import product
from ...quantization.factors import RowFeedback

Found = tuple[Tensor, Tensor, Tensor, list[int]]  # v, multiplier index, row scale and clipped blocks per matrix


def by_row_blocks(
    target: Tensor,
    rows: list[int],
    across: Sequence[RowFeedback],
    round_some: Callable[[Tensor, list[int]], Found],
) -> Found:
    """Rounds matrices stacked into one target (m, n), with rows[i] rows each.

    Args:
        target: (m, n) float32, the matrices one below the other.
        rows: number of rows of each matrix.
        across: what is fed from row to row, for some rows of the target after the other.
        round_some: rounds some rows (count, n), each as a matrix of its own, given [1] * count.

    Returns:
        what `rounding.round_rows` returns for the whole.
    """
    parts = target.split([len(each.order) for each in across])
    found = [_rounded(part, each, round_some) for part, each in zip(parts, across, strict=True)]
    v, index, scale, clipped = (torch.cat(each) for each in zip(*found, strict=True))
    return v, index, scale, [int(part.sum()) for part in clipped.split(rows)]


def _rounded(
    target: Tensor, across: RowFeedback, round_some: Callable[[Tensor, list[int]], Found]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """v, multiplier index, row scale and clipped blocks of each row."""
    ordered = target[across.order]
    error = torch.zeros_like(ordered)  # W̃ − Ŵ, zero where not yet rounded
    parts: list[tuple[Tensor, ...]] = []
    for block in across.blocks():
        some = ordered[block]
        if block.stop < len(target):
            # threads share the columns of the target, of which there are more than rows in a block
            some = some + product(error[block.stop :].t(), across.lower[block.stop :, block]).t()
        v, index, scale, clipped = round_some(some, [1] * len(some))
        error[block] = ordered[block] - v.float() * scale[:, None]
        parts.append((v, index, scale, torch.tensor(clipped, device=v.device)))
    back = across.order.argsort()
    v, index, scale, clipped_rows = (torch.cat(each[::-1])[back] for each in zip(*parts, strict=True))
    return v, index, scale, clipped_rows
