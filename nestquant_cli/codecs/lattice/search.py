"""Searching the digits of whole rows: all of G, H + J and feedback in one triangle, ‖(W − l(z)·Gᵀ)·C‖² = ‖y − l(z)·T‖².

With H + J = C·Cᵀ, C lower triangular, and G of each block of d columns, Gᵀ·C has blocks on its diagonal; turning each
by an orthogonal Q makes them triangular: y = W·C·Q, T = Gᵀ·C·Q. Choosing the last coordinate first is LDLQ.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import for_device
from ...kernels.contract.constants import PANEL
from ...parallel.tiles import diagonal_blocks, product, run_pieces, slices
from ..paths import best, follow, numbered, search_pieces
from .code import LatticeCode


@dataclass(frozen=True)
class Triangle:
    """The problem for one lattice of each group.

    Attributes:
        turned: (n, n) float32, C·Q.
        T: (n, n) float32, lower triangular.
    """

    turned: Tensor
    T: Tensor


def triangle(C: Tensor, lattices: Tensor, code: LatticeCode) -> Triangle:
    """T and C·Q from C (n, n) float32 lower triangular and lattices G (count, d, d) float32 of all groups."""
    n, d = len(C), lattices.shape[-1]
    G = spread(lattices, code, n)  # (n/d, d, d)
    blocks = diagonal_blocks(C, d)  # (n/d, d, d)
    Q, R = torch.linalg.qr((G.mT @ blocks).mT.double())
    sign = torch.where(R.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0)
    Q = (Q * sign[:, None, :]).float()
    turned, T = torch.empty_like(C), torch.empty_like(C)

    def columns(part: slice) -> None:
        first, last = part.start // d, part.stop // d
        strip = C[:, part].reshape(n, last - first, d).transpose(0, 1) @ Q[first:last]  # (blocks, n, d)
        turned[:, part] = strip.transpose(0, 1).reshape(n, -1)
        rows = G.mT[:, None] @ strip.view(last - first, n // d, d, d).transpose(0, 1)  # (n/d, blocks, d, d)
        T[:, part] = rows.transpose(1, 2).reshape(n, -1)

    run_pieces(columns, slices(n, C.device))
    return Triangle(turned, T.tril_())


def spread(lattices: Tensor, code: LatticeCode, entries: int) -> Tensor:
    """(count, d, d) to (entries/d, d, d): the matrix of each block of a row."""
    d = lattices.shape[-1]
    if code.shared:
        return lattices.expand(entries // d, d, d)
    blocks = [(part.stop - part.start) // d for part in code.groups(entries)]
    return torch.cat([G.expand(count, d, d) for G, count in zip(lattices, blocks, strict=True)])


def search(X: Tensor, work: Triangle, code: LatticeCode, paths: int) -> Tensor:
    """Digits (m, n) uint8 of rows X (m, n) float32 in units of their scales."""
    m, n = X.shape
    levels, counts = code.tables(X.device)
    widths = torch.tensor([part.stop - part.start for part in code.groups(n)])
    box = _Box(levels, counts, torch.arange(len(counts)).repeat_interleave(widths))
    digits = torch.empty(m, n, dtype=torch.uint8, device=X.device)

    def rows(part: slice) -> None:
        digits[part] = _search_rows(X[part] @ work.turned, work.T, box, paths)

    search_pieces(rows, X, paths)
    return digits


@dataclass(frozen=True)
class _Box:
    """levels (kinds, most) float32, counts (kinds,) of them, and the kind (n,) of each column."""

    levels: Tensor
    counts: Tensor
    kind: Tensor


def _search_rows(y: Tensor, T: Tensor, box: _Box, paths: int) -> Tensor:
    m, n = y.shape
    search_panel = for_device(y.device).search_lattice_panel
    residual = y[:, None]  # (m, alive, columns that are left)
    panels = []
    cost = y.new_zeros(m, 1)
    for end in range(n, 0, -PANEL):
        start = max(0, end - PANEL)
        block = T[start:end, start:end].contiguous()
        before = cost.shape[1]
        of_box = box.levels, box.counts, box.kind[start:end]
        z, chosen, parent, cost = search_panel(residual[:, :, start:end], cost, block, *of_box, paths)
        panels.append((z, parent))
        residual = follow(residual[:, :, :start], numbered(parent, before)).flatten(0, 1)
        residual.addmm_(chosen.flatten(0, 1), T[start:end, :start], alpha=-1)
        residual = residual.view(*parent.shape, start)
    return best(panels, cost)


def loss(X: Tensor, rounded: Tensor, C: Tensor) -> float:
    """‖(X − rounded)·C‖² for each row, relative to ‖C‖²/n."""
    return float(product(X - rounded, C).square().sum(dtype=torch.float64) / C.square().mean() / X.numel())
