"""K-best search over whole rows for nested codes.

LDLQ rounds one block after the other to the nearest point and keeps that single choice. This search keeps the K
cheapest sets of choices for all blocks so far. Their cost is the error of the output,

    ‖(W̃ − Ŵ)·C‖² = Σ_b ‖(t_b − ŵ_b)·C_b‖²,   H + J = C·Cᵀ = L·D·Lᵀ,   D_b = C_b·C_bᵀ

with t_b the target of block b, which includes the feedback of all later blocks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...e8.code import BLOCK, NestedCode
from ...kernels import for_device
from ...kernels.contract.constants import OVERLOADED, PANEL
from ...quantization.factors import Feedback
from ..paths import best, follow, numbered, search_pieces
from ..row_scale import row_scale_bits, row_scale_of
from .code import ScaledCode


@dataclass(frozen=True)
class _Problem:
    L: Tensor
    blocks: Tensor
    code: NestedCode
    paths: int


def search_rows(
    target: Tensor, rows: list[int], step: Feedback, scaled: ScaledCode, paths: int
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Rounds matrices stacked into one target (m, n), with rows[i] rows each.

    Args:
        target: (m, n) float32, the matrices one below the other.
        rows: number of rows of each matrix.
        step: the factorization, with L and the diagonal blocks C_b.
        scaled: code of the matrices.
        paths: K, 1 to 64.

    Returns:
        v (m, n) integer, multiplier index (m, n/8) uint8, row scale (m,) float32 as stored, clipped blocks per matrix.
    """
    assert step.lower is not None and step.blocks is not None
    m, n = target.shape
    code = scaled.code
    scale = row_scale_of(row_scale_bits(scaled.row_scale(target)))
    problem = _Problem(step.lower, step.blocks, code, paths)
    v = torch.empty(m, n, dtype=torch.int8 if code.int8 else torch.int16, device=target.device)
    index = torch.empty(m, n // BLOCK, dtype=torch.uint8, device=target.device)

    def search(part: slice) -> None:
        v[part], index[part] = _search(target[part] / scale[part, None], problem)

    lanes = for_device(target.device).limits.lanes
    search_pieces(search, target, paths, multiple=max(1, lanes // paths))  # this many rows fill a tile of the kernel
    overloaded = index == OVERLOADED
    index[overloaded] = code.k - 1
    return v, index, scale, [int(part.sum()) for part in overloaded.split(rows)]


def _search(W: Tensor, problem: _Problem) -> tuple[Tensor, Tensor]:
    """Searches rows W (rows, n), each divided by its scale: v (rows, n) float32 and multiplier index (rows, n/8)."""
    rows, n = W.shape
    search_panel = for_device(W.device).search_nested_panel
    t, cost = W[:, None], W.new_zeros(rows, 1)
    chosen, marked = [], []
    for end in range(n, 0, -PANEL):
        panel = slice(max(0, end - PANEL), end)
        before = cost.shape[1]
        L, blocks = problem.L[panel, panel], problem.blocks[panel.start // BLOCK : panel.stop // BLOCK]
        arguments = t[:, :, panel], W[:, panel], cost, L, blocks, problem.code, problem.paths
        values, marks, parent, cost = search_panel(*arguments)
        came = numbered(parent, before)
        chosen.append((values, parent))
        marked.append((marks, parent))
        t = follow(t[:, :, : panel.start], came).flatten(0, 1)
        t.addmm_((W[:, None, panel] - values).flatten(0, 1), problem.L[panel, : panel.start])
        t = t.view(*parent.shape, panel.start)
    return best(chosen, cost), best(marked, cost)
