"""The K-best searches and the decoding of lattices on the CPU, on torch tensors.

The compiled loops work in arrays with room for all paths; paths that are not in use yet follow those that are.
"""

import numpy as np
import torch
from torch import Tensor

from ...e8.code import BLOCK, NestedCode
from ..contract.searches import LatticeGroup
from . import lattice_beam, lattice_decode, nested_beam
from .nested import multipliers_of
from .threads import share


def search_nested_panel(
    t: Tensor, W: Tensor, cost: Tensor, L: Tensor, blocks: Tensor, code: NestedCode, paths: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chooses the blocks of one panel for every row: `contract.searches.search_nested_panel`, compiled.

    It runs on the thread that calls it: callers share the rows among threads.
    """
    rows, alive, width = t.shape
    values, costs = t.new_zeros(rows, paths, width), t.new_zeros(rows, paths)
    values[:, :alive], costs[:, :alive] = t, cost
    marks = torch.empty(rows, paths, width // BLOCK, dtype=torch.uint8)
    parent = torch.empty(costs.shape, dtype=torch.int64)
    alive = nested_beam.search_panel(
        values.numpy(),
        W.contiguous().numpy(),
        costs.numpy(),
        alive,
        L.contiguous().numpy(),
        blocks.contiguous().numpy(),
        multipliers_of(code),
        np.float32(code.q),
        np.float32(code.limit),
        marks.numpy(),
        parent.numpy(),
    )
    return values[:, :alive], marks[:, :alive], parent[:, :alive], costs[:, :alive]


def search_lattice_panel(
    residual: Tensor, cost: Tensor, T: Tensor, levels: Tensor, counts: Tensor, kind: Tensor, paths: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chooses the columns of one panel for every row: `contract.searches.search_lattice_panel`, compiled.

    It runs on the thread that calls it: callers share the rows among threads.
    """
    rows, alive, width = residual.shape
    u, costs = residual.new_zeros(rows, paths, width), residual.new_zeros(rows, paths)
    u[:, :alive], costs[:, :alive] = residual, cost
    digits, parent = torch.empty(u.shape, dtype=torch.uint8), torch.empty(costs.shape, dtype=torch.int64)
    arrays = [x.numpy() for x in (T, kind, levels, counts, digits, parent)]
    alive = lattice_beam.search_panel(u.numpy(), costs.numpy(), alive, *arrays, paths)
    return digits[:, :alive], u[:, :alive], parent[:, :alive], costs[:, :alive]


def decode_lattices(
    words: Tensor, entries: int, groups: list[LatticeGroup], levels: Tensor, lattices: Tensor
) -> Tensor:
    """Digits of rows to G·l(z), (rows, entries) float32: `contract.searches.decode_lattices` on torch's threads."""
    values = torch.empty(len(words), entries)
    turned = lattices.transpose(1, 2).contiguous().numpy()
    fixed = words.contiguous().numpy(), np.array(groups), levels.numpy(), turned, values.numpy()
    share(lattice_decode.decode.on_team, fixed, len(words), entries // BLOCK)
    return values
