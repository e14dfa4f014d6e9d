"""The K-best search of nested codes in plain torch: all rows at a time, on any device."""

import torch
from torch import Tensor

from ...e8.code import BLOCK, NestedCode
from ..contract.constants import FEW_MULTIPLIERS, OVERLOADED
from .nested import clip, round_under


def search_panel(
    t: Tensor, W: Tensor, cost: Tensor, L: Tensor, blocks: Tensor, code: NestedCode, paths: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chooses the blocks of one panel for every row: `contract.searches.search_nested_panel` in plain torch."""
    rows, alive, width = t.shape
    parent = torch.arange(alive, device=t.device).expand(rows, alive)
    v, index = torch.zeros_like(t), t.new_zeros((rows, alive, width // BLOCK), dtype=torch.uint8)
    for b in range(width // BLOCK - 1, -1, -1):
        own = slice(b * BLOCK, (b + 1) * BLOCK)
        target = t[:, :, own]
        values, marks, allowed = _branches(target.reshape(-1, BLOCK), code)
        values = values.view(rows, -1, len(marks), BLOCK)
        spent = ((target[:, :, None] - values) @ blocks[b]).square().sum(-1)
        spent = torch.where(allowed.view(spent.shape), cost[..., None] + spent, torch.inf)
        for c in range(1, len(marks)):
            again = (spent[:, :, :c] == spent[:, :, c : c + 1]).any(-1)
            spent[:, :, c] = torch.where(again, torch.inf, spent[:, :, c])
        lost = torch.isinf(spent).all(-1) & torch.isfinite(cost)
        if lost.any():
            values[:, :, 0][lost] = clip(target[lost], code).float()
            clipped_cost = cost[lost] + ((target[lost] - values[:, :, 0][lost]) @ blocks[b]).square().sum(-1)
            spent[:, :, 0] = spent[:, :, 0].masked_scatter(lost, clipped_cost)
        # By branch and then by path, as the compiled kernel counts, so that ties fall alike.
        spent = spent.transpose(1, 2).flatten(1)
        chosen = spent.topk(min(paths, spent.shape[1]), dim=1, largest=False).indices.sort(dim=1).values
        cost, came, branch = spent.gather(1, chosen), chosen % lost.shape[1], chosen // lost.shape[1]
        clipped = lost.gather(1, came) & (branch == 0)
        parent = parent.gather(1, came)
        t, v, index = (x.gather(1, came[..., None].expand(-1, -1, x.shape[2])) for x in (t, v, index))
        row = torch.arange(rows, device=t.device)[:, None]
        v[:, :, own] = values[row, came, branch]
        index[:, :, b] = torch.where(clipped, OVERLOADED, marks[branch]).to(torch.uint8)
        t[:, :, : own.start] += (W[:, None, own] - v[:, :, own]) @ L[own, : own.start]
    return v, index, parent, cost


def _branches(y: Tensor, code: NestedCode) -> tuple[Tensor, Tensor, Tensor]:
    """Branches of targets (n, 8).

    Returns:
        values (n, count, 8) float32, numbers of multipliers (count,), and which are codewords (n, count).
    """
    found = [round_under(y, m, code) for m in code.multipliers]
    if code.k <= FEW_MULTIPLIERS:
        found += [round_under(y, m, code, other=True) for m in code.multipliers]
    marks = torch.arange(len(found), device=y.device) % code.k
    m = torch.tensor(code.multipliers, device=y.device)[marks]
    values = torch.stack([u for u, _ in found], 1) * m[:, None]
    return values.float(), marks, torch.stack([torch.isfinite(error) for _, error in found], 1)
