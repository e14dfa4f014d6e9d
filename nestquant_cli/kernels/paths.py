"""Following the paths of a K-best search from one panel to the next."""

import torch
from torch import Tensor


def numbered(parent: Tensor, before: int) -> Tensor:
    """Paths that others come from, (rows, kept) int64, each below `before`: numbered through all rows."""
    return parent + torch.arange(len(parent), device=parent.device)[:, None] * before


def follow(of: Tensor, came: Tensor) -> Tensor:
    """What the paths that are kept take over of (rows, before, …) from those that they come from, `numbered`."""
    return of.flatten(0, 1)[came.flatten()].view(*came.shape, -1)


def best(of: Tensor, cost: Tensor) -> Tensor:
    """Of (rows, paths, …) the path of least cost (rows, paths) of each row."""
    return of[torch.arange(len(of), device=of.device), cost.argmin(1)]
