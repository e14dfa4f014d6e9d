"""Rounds matrices to lattices that are learned for each of them, all columns of a row searched together."""

import torch
from torch import Tensor

from ...parallel.tiles import product
from ...quantization.factors import Feedback
from ..row_scale import row_scale_bits, row_scale_of
from ..weights import RoundedRows
from .code import LatticeCode
from .learn import learn
from .search import search, triangle

_SMALLEST = 2.0**-120  # scale of a row of zeros


def quantize_rows(step: Feedback, rows: list[int], shape: LatticeCode, seed: int, paths: int) -> RoundedRows:
    """Rounds stacked matrices, each to lattices of its own; `step.lower` is the Cholesky factor C of H + J = C·Cᵀ."""
    target, factor = step.target, step.lower
    eye = torch.eye(target.shape[1], device=target.device)
    C = eye if factor is None else (factor / factor.diagonal().square().mean().sqrt()).contiguous()
    found = [_matrix(matrix, C, shape, seed, paths) for matrix in target.split(rows)]
    values = torch.cat([values for _, values, _ in found])
    records = [{"code": code.to_dict(), "groups": code.fitted()} for _, _, code in found]
    return RoundedRows([tensors for tensors, _, _ in found], values, [code for _, _, code in found], records)


def _matrix(
    target: Tensor, C: Tensor, shape: LatticeCode, seed: int, paths: int
) -> tuple[dict[str, Tensor], Tensor, LatticeCode]:
    """What is stored of a matrix (m, n), what it stands for, and its code."""
    scale = target.square().mean(1).sqrt().clamp(min=_SMALLEST)
    X = target / scale[:, None]
    code, lattice = learn(X, C, shape, seed, paths)
    G = lattice.float()
    digits = search(X, triangle(C, G, code), code, paths)
    points = code.multiply(digits, G)
    bits = row_scale_bits((scale * _refit(X, points, C)).clamp(min=_SMALLEST))
    tensors = {"words": code.pack(digits), "row_scale": bits, "lattice": lattice.view(torch.int16)}
    return tensors, points * row_scale_of(bits)[:, None], code


def _refit(X: Tensor, points: Tensor, C: Tensor) -> Tensor:
    """The factor of each row's points that brings them nearest to X in the metric C·Cᵀ, ½ to 1½."""
    turned = product(points, C)
    gain = (product(X - points, C) * turned).sum(1) / turned.square().sum(1).clamp(min=_SMALLEST)
    return 1 + gain.clamp(-0.5, 0.5)
