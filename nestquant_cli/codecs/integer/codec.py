"""The codec "integer": uniform grids (see `integer`)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..protocol import RoundedRows, Rounder, Shape, WeightCode
from ..vectors import VectorCode
from .code import IntegerCode
from .rounder import IntegerRounder


class Integers:
    """See `Codec`. Settings of a recipe: any of symmetric, group, and clip, a number or "mse"."""

    name: ClassVar[str] = IntegerCode.codec
    columns: ClassVar[int | None] = IntegerRounder.columns
    settings: ClassVar[tuple[str, ...]] = ("symmetric", "group", "clip")

    def shape(self, bits: float, settings: Any, place: str) -> Shape:
        if bits != int(bits):
            raise ValueError(f"bits {bits:g} of an integer code are not a whole number")
        if settings is None:
            return IntegerCode(int(bits))
        if not isinstance(settings, dict) or not set(settings) <= set(self.settings):
            raise ValueError(f"{place} {settings} is not of the form {{symmetric: true, group: 64, clip: 0.9}}")
        clip = None if settings.get("clip") == "mse" else settings.get("clip")
        return IntegerCode(int(bits), settings.get("symmetric", True), settings.get("group"), clip)

    def shape_from(self, value: dict[str, Any]) -> Shape:
        return IntegerCode.from_dict(value)

    def fit(self, rows: Tensor, shape: Shape, seed: int) -> VectorCode:
        return _own(shape).fit(rows[torch.isfinite(rows).all(1)])

    def vector_from(self, fitted: dict[str, Any], shape: Shape) -> VectorCode:
        own, clip = _own(shape), fitted.get("clip")
        if clip is None:
            raise ValueError("an integer code has no clip")
        return IntegerCode(own.bits, own.symmetric, own.group, clip)

    def weight_code(self, shape: Shape, multipliers: tuple[int, ...] | None) -> WeightCode:
        return _own(shape)

    def decoded(self, code: WeightCode, tensors: Mapping[str, Tensor], entries: int) -> Tensor:
        own, scale = _own(code), tensors["row_scale"].view(torch.bfloat16).float()
        v = own.decode(tensors["words"], tensors.get("zeros"), entries).float()
        return v * (scale[:, None] if own.group is None else own.spread(scale, entries))

    def rounder(self, target: Tensor, rows: list[int], shape: Shape, seed: int) -> Rounder | None:
        return IntegerRounder(target, rows, _own(shape))

    def search(
        self, target: Tensor, rows: list[int], shape: Shape, seed: int, factor: Tensor | None, paths: int
    ) -> RoundedRows:
        raise NotImplementedError("rounded by columns")


def _own(code: Shape | WeightCode) -> IntegerCode:
    assert isinstance(code, IntegerCode)
    return code
