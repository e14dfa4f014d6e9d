"""Searching the digits of whole rows: all of G, H + J and feedback in one triangle, ‖(W − l(z)·Gᵀ)·C‖² = ‖y − l(z)·T‖².

With H + J = C·Cᵀ, C lower triangular, and G of each block of d columns, Gᵀ·C has blocks on its diagonal; turning each
by an orthogonal Q makes them triangular: y = W·C·Q, T = Gᵀ·C·Q. Choosing the last coordinate first is LDLQ.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.cpu_beam import search_panel
from ..tiles import product, run_pieces, slices
from .glvq import LatticeCode

PANEL = 64  # columns between two products with the whole triangle
_CHUNK = 1 << 22  # entries of the residuals of all paths of the rows that are searched at once


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
    """See above; C (n, n) float32 lower triangular, lattices (count, d, d) float32."""
    n, d = len(C), lattices.shape[-1]
    G = spread(lattices, code, n)  # (n/d, d, d)
    blocks = C.view(n // d, d, n // d, d).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (n/d, d, d)
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
    counts = torch.tensor([(part.stop - part.start) // d for part in code.groups(entries)])
    return lattices.repeat_interleave(counts, dim=0)


def search(X: Tensor, work: Triangle, code: LatticeCode, paths: int) -> Tensor:
    """Digits (m, n) uint8 of rows X (m, n) float32 in units of their scales, found on the CPU."""
    m, n = X.shape
    groups, tables = code.groups(n), [table.numpy() for table in code.levels(torch.device("cpu"))]
    kind = np.repeat(np.arange(len(groups)), [part.stop - part.start for part in groups])
    levels = np.zeros((len(groups), max(map(len, tables))), np.float32)
    for number, table in enumerate(tables):
        levels[number, : len(table)] = table
    box = _Box(kind, levels, np.array([len(table) for table in tables]))
    digits = torch.empty(m, n, dtype=torch.uint8)
    size = max(1, min(256, _CHUNK // (n * paths)))

    def rows(part: slice) -> None:
        digits[part] = _search_rows(X[part] @ work.turned, work.T, box, paths)

    run_pieces(rows, slices(m, X.device, size))
    return digits


@dataclass(frozen=True)
class _Box:
    kind: NDArray[np.int64]
    levels: NDArray[np.float32]
    counts: NDArray[np.int64]


def _search_rows(y: Tensor, T: Tensor, box: _Box, paths: int) -> Tensor:
    m, n = y.shape
    residual = y[:, None]  # (m, alive, columns that are left)
    digits = torch.empty(m, 1, n, dtype=torch.uint8)
    cost, alive = np.zeros((m, paths), np.float32), 1
    for end in range(n, 0, -PANEL):
        start = max(0, end - PANEL)
        u = np.zeros((m, paths, end - start), np.float32)
        u[:, :alive] = residual[:, :, start:end].numpy()
        z, parent = np.zeros(u.shape, np.uint8), np.zeros((m, paths), np.int64)
        own, kind = T[start:end, start:end].contiguous().numpy(), box.kind[start:end]
        alive = search_panel(u, cost, alive, own, kind, box.levels, box.counts, z, parent, paths)
        came = torch.from_numpy(parent[:, :alive, None])
        digits = digits.gather(1, came.expand(-1, -1, n))
        digits[:, :, start:end] = torch.from_numpy(z[:, :alive])
        chosen = torch.from_numpy(box.levels[kind, z[:, :alive]])
        residual = residual[:, :, :start].gather(1, came.expand(-1, -1, start))
        residual = residual - (chosen.flatten(0, 1) @ T[start:end, :start]).view(m, alive, start)
    return digits[torch.arange(m), torch.from_numpy(cost[:, :alive]).argmin(1)]


def loss(X: Tensor, rounded: Tensor, C: Tensor) -> float:
    """‖(X − rounded)·C‖² for each row, relative to ‖C‖²/n."""
    return float(product(X - rounded, C).square().sum(dtype=torch.float64) / C.square().mean() / X.numel())
