"""Bookkeeping of a K-best search: which path continues which, from one panel of columns to the next, and back."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..base.device import on_host
from ..parallel.tiles import TILE, run_pieces, slices

_CHUNK = 1 << 21  # entries of all paths of the rows that are searched at once: 8 MiB
_CHUNK_GPU = 1 << 28  # the same on a GPU


def search_pieces(search: Callable[[slice], object], like: Tensor, paths: int, multiple: int = 1) -> None:
    """Calls `search` on pieces of the rows of a matrix, each small enough for the paths of its rows to fit in memory.

    On the CPU threads share the pieces. On a GPU they run one after another.

    Args:
        search: searches some rows; called with their slice.
        like: the matrix (m, n).
        paths: K, copies of a row that are alive at the same time.
        multiple: all pieces but the last have a multiple of this many rows: as many as fill a tile of the kernel.
    """
    m, n = like.shape
    if on_host(like.device):
        size = min(TILE, _CHUNK // (n * paths)) // multiple * multiple
        run_pieces(search, slices(m, like.device, max(multiple, size)))
        return
    size = max(multiple, _CHUNK_GPU // (n * paths))
    for start in range(0, m, size):
        search(slice(start, min(start + size, m)))


def numbered(parent: Tensor, before: int) -> Tensor:
    """Parents (rows, kept) int64, each a path 0 … before − 1 of its row, as indices into the paths of all rows."""
    return parent + torch.arange(len(parent), device=parent.device)[:, None] * before


def follow(of: Tensor, came: Tensor) -> Tensor:
    """Gathers, for each path that was kept, the state of the path that it continues.

    Args:
        of: (rows, before, width), the state of all paths before this panel.
        came: (rows, kept) int64, the parents as `numbered` gives them.

    Returns:
        (rows, kept, width).
    """
    return of.flatten(0, 1)[came.flatten()].view(*came.shape, -1)


def best(panels: Sequence[tuple[Tensor, Tensor]], cost: Tensor) -> Tensor:
    """Reads back the choices of each row's cheapest path.

    Args:
        panels: in the order of the search, each panel's choices (rows, paths, width) and its parents (rows, paths).
        cost: (rows, kept), the cost of each path after the last panel.

    Returns:
        (rows, total width); the panel that was searched last comes first.
    """
    row, path = torch.arange(len(cost), device=cost.device), cost.argmin(1)
    parts = []
    for choices, parent in reversed(panels):
        parts.append(choices[row, path])
        path = parent[row, path]
    return torch.cat(parts, dim=1)
