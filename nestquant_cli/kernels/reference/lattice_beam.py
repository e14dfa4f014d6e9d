"""The K-best search over the levels of lattices in plain torch: all rows at a time, on any device."""

import torch
from torch import Tensor

from ..contract.constants import NEAREST_LEVELS


def search_panel(
    residual: Tensor, cost: Tensor, T: Tensor, levels: Tensor, counts: Tensor, kind: Tensor, paths: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chooses the columns of one panel for every row: `contract.searches.search_lattice_panel` in plain torch."""
    tables, counts = levels[kind], counts[kind]
    rows, alive, width = residual.shape
    parent = torch.arange(alive, device=T.device).expand(rows, alive)
    digits = residual.new_zeros((rows, alive, width), dtype=torch.uint8)
    for column in range(width - 1, -1, -1):
        table, pivot = tables[column, : counts[column]], T[column, column]
        u = residual[:, :, column].contiguous()
        below = (torch.bucketize(u / pivot, table) - 1).clamp(0, len(table) - NEAREST_LEVELS)
        branch = below[..., None] + torch.arange(NEAREST_LEVELS, device=T.device)
        found = (cost[..., None] + (u[..., None] - table[branch] * pivot).square()).flatten(1)
        chosen = found.topk(min(paths, found.shape[1]), dim=1, largest=False).indices.sort(dim=1).values
        cost, came, level = found.gather(1, chosen), chosen // NEAREST_LEVELS, branch.flatten(1).gather(1, chosen)
        parent = parent.gather(1, came)
        residual, digits = (x.gather(1, came[..., None].expand(-1, -1, width)) for x in (residual, digits))
        residual = residual - table[level][..., None] * T[column]
        digits[:, :, column] = level.to(torch.uint8)
    return digits, tables.gather(1, digits.flatten(0, 1).t().long()).t().view(digits.shape), parent, cost
