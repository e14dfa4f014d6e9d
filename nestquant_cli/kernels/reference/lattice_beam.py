"""The K-best search of `cpu_beam` in plain torch, all rows at a time, on any device."""

import torch
from torch import Tensor

from ..cpu.lattice_beam import NEAREST


def search_panel(
    residual: Tensor, cost: Tensor, T: Tensor, tables: Tensor, counts: Tensor, paths: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chooses the columns of one panel for every row.

    Args:
        residual: (rows, alive, width) float32, y less what the columns after the panel took of it.
        cost: (rows, alive) float32, of the columns after the panel.
        T: (width, width) float32, the panel's part of the triangle.
        tables: (width, most) float32, the levels of each column, increasing up to its count.
        counts: (width,) int64, powers of 2.
        paths: most that are kept.

    Returns:
        of the paths that are kept: digits (rows, kept, width) uint8, their levels as float32, the path from before the
        panel that each goes on (rows, kept) int64, and cost (rows, kept).
    """
    rows, alive, width = residual.shape
    parent = torch.arange(alive, device=T.device).expand(rows, alive)
    digits = residual.new_zeros((rows, alive, width), dtype=torch.uint8)
    for column in range(width - 1, -1, -1):
        table, pivot = tables[column, : counts[column]], T[column, column]
        u = residual[:, :, column].contiguous()
        below = (torch.bucketize(u / pivot, table) - 1).clamp(0, len(table) - NEAREST)
        branch = below[..., None] + torch.arange(NEAREST, device=T.device)
        found = (cost[..., None] + (u[..., None] - table[branch] * pivot).square()).flatten(1)
        chosen = found.topk(min(paths, found.shape[1]), dim=1, largest=False).indices.sort(dim=1).values
        cost, came, level = found.gather(1, chosen), chosen // NEAREST, branch.flatten(1).gather(1, chosen)
        parent = parent.gather(1, came)
        residual, digits = (x.gather(1, came[..., None].expand(-1, -1, width)) for x in (residual, digits))
        residual = residual - table[level][..., None] * T[column]
        digits[:, :, column] = level.to(torch.uint8)
    return digits, tables.gather(1, digits.flatten(0, 1).t().long()).t().view(digits.shape), parent, cost
