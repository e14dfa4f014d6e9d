"""Learning the lattices of a matrix: bits by salience, curves by error, and each G by turns with the points.

G starts as the Cholesky factor of the covariance of its group. Then the points of some rows are searched, and G solves
the least squares of those rows' targets, with feedback, pulled towards where it started. The best iterate is kept.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ...parallel.tiles import diagonal_blocks
from .code import CURVES, MAX_BITS, LatticeCode, levels
from .search import loss, search, triangle

ROWS = 256  # rows of a matrix that its lattices are learned on, at most
STEPS = 6  # rounds of search and least squares, at most; they end when the loss falls by less than 0.1 %
PULL = 0.02  # weight of the start in the least squares, as a fraction of the mean power of the points
PATHS = 16  # paths of the search while learning, at most; G learned with 4 is 0.08 dB worse at 2 bits


def learn(X: Tensor, C: Tensor, shape: LatticeCode, seed: int, paths: int) -> tuple[LatticeCode, Tensor]:
    """The code of a matrix and its lattices.

    Args:
        X: (m, n) float32, rows of unit mean square.
        C: (n, n) float32, lower triangular, C·Cᵀ the metric of a row's error.
        shape: what the recipe asks for.
        seed: seed of the choice of rows.
        paths: number of paths of the search.

    Returns:
        the code with bits and curves of all groups, and (count, d, d) float16.
    """
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))
    X = X[order[:ROWS].sort().values]
    code = _with_bits(C, shape)
    first = _start(X, code)
    code = _with_curves(X, first, code)
    weight = _weights(C, first.shape[-1])
    feeding = _feedback(C, first.shape[-1])
    G, best = first, (float("inf"), first)
    for _ in range(STEPS):
        G = G.half().float()
        digits = search(X, triangle(C, G, code), code, min(PATHS, paths))
        rounded = code.multiply(digits, G)
        found = loss(X, rounded, C)
        if not found < best[0] * 0.999:
            break
        best = found, G
        target = X + (X - rounded) @ feeding
        points = code.multiply(digits, torch.eye(G.shape[-1], device=G.device).expand_as(G))
        G = _least_squares(target, points, weight, first, code)
    return code, best[1].half()


def _with_bits(C: Tensor, shape: LatticeCode) -> LatticeCode:
    """Bits of each group: those of most gain a bit first, until the average is spent."""
    n = len(C)
    widths = [part.stop - part.start for part in shape.groups(n)]
    salience = [float(C.diagonal()[part].double().square().sum()) for part in shape.groups(n)]
    low = max(1, int(-(-shape.bits // 1)) - 1)
    bits, high = [low] * len(widths), min(MAX_BITS, int(shape.bits // 1) + 1)
    room = shape.row_bytes(n) * 8 - low * n
    while True:
        gains = {
            group: salience[group] * (_error(bits[group]) - _error(bits[group] + 1)) / width
            for group, width in enumerate(widths)
            if bits[group] < high and width <= room
        }
        if not gains:
            none = (0,) * len(bits)
            return replace(shape, group_bits=tuple(bits), curves=none)
        chosen = max(gains, key=lambda group: gains[group])
        bits[chosen] += 1
        room -= widths[chosen]


def _error(bits: int) -> float:
    return min(levels(bits, curve)[1] for curve in range(len(CURVES)))


def _start(X: Tensor, code: LatticeCode) -> Tensor:
    n = X.shape[1]
    d = code.dimension_of(n)
    parts = [slice(0, n)] if code.shared else code.groups(n)
    found = []
    for part in parts:
        vectors = X[:, part].reshape(-1, d).double()
        covariance = vectors.t() @ vectors / max(1, len(vectors))
        covariance.diagonal().add_(1e-4 * covariance.diagonal().mean() + 1e-12)
        found.append(torch.linalg.cholesky(covariance).float())
    return torch.stack(found)


def _with_curves(X: Tensor, first: Tensor, code: LatticeCode) -> LatticeCode:
    """The curve of each group with the least error on its coordinates under the first G."""
    if not code.companding:
        return code
    assert code.group_bits is not None
    n, chosen = X.shape[1], []
    for number, (part, bits) in enumerate(zip(code.groups(n), code.group_bits, strict=True)):
        G = first[0 if code.shared else number]
        x = torch.linalg.solve_triangular(G, X[:, part].reshape(-1, len(G)).t(), upper=False).flatten()
        x = x[:: max(1, len(x) // 65536)]
        errors = []
        for curve in range(len(CURVES)):
            table = levels(bits, curve)[0].to(x.device)
            near = table[torch.bucketize(x, (table[1:] + table[:-1]) / 2)]
            errors.append(float((x - near).square().sum(dtype=torch.float64)))
        chosen.append(errors.index(min(errors)))
    return replace(code, curves=tuple(chosen))


def _weights(C: Tensor, d: int) -> Tensor:
    """(n/d,) float32: the mean diagonal of D of each block, H + J = L·D·Lᵀ."""
    return diagonal_blocks(C, d).square().sum((1, 2)) / d


def _feedback(C: Tensor, d: int) -> Tensor:
    """(n, n) float32, L − I of L block-unit lower triangular."""
    n = len(C)
    blocks = diagonal_blocks(C, d)  # (n/d, d, d)
    strips = C.view(n, n // d, d).transpose(0, 1)  # (n/d, n, d)
    L = torch.linalg.solve_triangular(blocks, strips, upper=False, left=False).transpose(0, 1).reshape(n, n)
    L.diagonal().sub_(1)
    return L


def _least_squares(target: Tensor, points: Tensor, weight: Tensor, first: Tensor, code: LatticeCode) -> Tensor:
    """G of least Σ w·‖t − G·l‖² + pull·‖G − first‖², with t (m, n) targets and points (m, n) l of all blocks."""
    n, d = target.shape[1], first.shape[-1]
    found = []
    for number, part in enumerate([slice(0, n)] if code.shared else code.groups(n)):
        t, p = (x[:, part].reshape(len(x), -1, d).double() for x in (target, points))
        w = weight[part.start // d : part.stop // d].double()[:, None]
        power = torch.einsum("rbi,rbj->ij", p * w, p)
        cross = torch.einsum("rbi,rbj->ij", t * w, p)
        pull = PULL * power.diagonal().mean() + 1e-12
        power.diagonal().add_(pull)
        found.append(torch.linalg.solve(power, cross + pull * first[number].double(), left=False).float())
    return torch.stack(found)
