"""The codec "glvq": grouped lattices with learned generators (see `glvq`), searched over whole rows."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...parallel.tiles import product
from ..protocol import RoundedRows, Rounder, Shape, WeightCode
from ..vectors import VectorCode
from .code import LatticeCode
from .learn import learn
from .search import search, triangle

_SMALLEST = 2.0**-120  # scale of a row of zeros


class Glvq:
    """See `Codec`. Settings of a recipe: any of dimension, group, shared and companding."""

    name: ClassVar[str] = LatticeCode.codec
    columns: ClassVar[int | None] = None
    settings: ClassVar[tuple[str, ...]] = ("dimension", "group", "shared", "companding")

    def shape(self, bits: float, settings: Any, place: str) -> Shape:
        if not place.startswith("weight"):
            raise ValueError("glvq codes weights only, activations, keys and values stay in 16 bits")
        if settings is None:
            settings = {}
        if not isinstance(settings, dict) or not set(settings) <= set(self.settings):
            raise ValueError(f"{place} {settings} is not of the form {{dimension: 8, group: 128}}")
        return LatticeCode(bits, **settings)

    def shape_from(self, value: dict[str, Any]) -> Shape:
        return LatticeCode.from_dict(value)

    def fit(self, rows: Tensor, shape: Shape, seed: int) -> VectorCode:
        raise NotImplementedError("a recipe has glvq for weights only")

    def vector_from(self, fitted: dict[str, Any], shape: Shape) -> VectorCode:
        raise ValueError("glvq codes weights only")

    def weight_code(self, shape: Shape, multipliers: tuple[int, ...] | None) -> WeightCode:
        return _own(shape)

    def decoded(self, code: WeightCode, tensors: Mapping[str, Tensor], entries: int) -> Tensor:
        scale = tensors["row_scale"].view(torch.bfloat16).float()
        return _own(code).decode(tensors["words"], tensors["lattice"], entries) * scale[:, None]

    def rounder(self, target: Tensor, rows: list[int], shape: Shape, seed: int) -> Rounder | None:
        return None

    def search(
        self, target: Tensor, rows: list[int], shape: Shape, seed: int, factor: Tensor | None, paths: int
    ) -> RoundedRows:
        """Each of the stacked matrices has lattices of its own."""
        eye = torch.eye(target.shape[1], device=target.device)
        C = eye if factor is None else (factor / factor.diagonal().square().mean().sqrt()).contiguous()
        found = [_matrix(part, C, _own(shape), seed, paths) for part in target.split(rows)]
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
    stored = (scale * _refit(X, points, C)).clamp(min=_SMALLEST).to(torch.bfloat16)
    tensors = {"words": code.pack(digits), "row_scale": stored.view(torch.int16), "lattice": lattice.view(torch.int16)}
    return tensors, points * stored.float()[:, None], code


def _refit(X: Tensor, points: Tensor, C: Tensor) -> Tensor:
    """The factor of each row's points that brings them nearest to X in the metric C·Cᵀ, ½ to 1½."""
    turned = product(points, C)
    gain = (product(X - points, C) * turned).sum(1) / turned.square().sum(1).clamp(min=_SMALLEST)
    return 1 + gain.clamp(-0.5, 0.5)


def _own(code: Shape | WeightCode) -> LatticeCode:
    assert isinstance(code, LatticeCode)
    return code
