"""Following the paths of a K-best search from one panel to the next, and back."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..tiles import TILE, run_pieces, slices

_CHUNK = 1 << 21  # entries of all paths of the rows that are searched at once
_CHUNK_GPU = 1 << 28  # the same on a GPU


def search_pieces(search: Callable[[slice], object], like: Tensor, paths: int, multiple: int = 1) -> None:
    """Calls `search` on pieces of the rows of `like` (m, n), as many rows as their paths leave memory for.

    Threads share pieces on the CPU, where all but the last have a multiple of `multiple` rows; a GPU does them in turn.
    """
    m, n = like.shape
    if like.device.type == "cpu":
        size = min(TILE, _CHUNK // (n * paths)) // multiple * multiple
        run_pieces(search, slices(m, like.device, max(multiple, size)))
        return
    size = max(multiple, _CHUNK_GPU // (n * paths))
    for start in range(0, m, size):
        search(slice(start, min(start + size, m)))


def numbered(parent: Tensor, before: int) -> Tensor:
    """Paths that others come from, (rows, kept) int64, each below `before`: numbered through all rows."""
    return parent + torch.arange(len(parent), device=parent.device)[:, None] * before


def follow(of: Tensor, came: Tensor) -> Tensor:
    """What the paths that are kept take over of (rows, before, …) from those that they come from, `numbered`."""
    return of.flatten(0, 1)[came.flatten()].view(*came.shape, -1)


def best(panels: Sequence[tuple[Tensor, Tensor]], cost: Tensor) -> Tensor:
    """What the path of least cost (rows, kept) chose, from the panel that was searched last back to the first.

    Args:
        panels: in the order of the search, choices (rows, paths, width) and the paths they come from (rows, paths).
        cost: after the last panel.

    Returns:
        (rows, width of all), the last panel first.
    """
    row, path = torch.arange(len(cost), device=cost.device), cost.argmin(1)
    parts = []
    for choices, parent in reversed(panels):
        parts.append(choices[row, path])
        path = parent[row, path]
    return torch.cat(parts, dim=1)
