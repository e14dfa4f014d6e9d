"""The codec "nestquant": nested E8 lattice codes (see `e8.code` and `fit`)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...e8.code import BLOCK, MOST_MULTIPLIERS, NestedCode
from ...e8.shape import CodeShape, shape_for_bits, shape_for_q
from ...kernels import for_device
from ..protocol import RoundedRows, Rounder, Shape, WeightCode
from ..vectors import VectorCode
from .centered import centered_from
from .fit import ScaledCode, fit_rows


class NestQuant:
    """See `Codec`. Settings of a recipe: q and k."""

    name: ClassVar[str] = CodeShape.codec
    columns: ClassVar[int | None] = BLOCK
    settings: ClassVar[tuple[str, ...]] = ("q", "k")

    def shape(self, bits: float, settings: Any, place: str) -> Shape:
        if settings is None:
            return shape_for_bits(bits)
        if (
            not isinstance(settings, dict)
            or set(settings) != set(self.settings)
            or any(type(value) is not int for value in settings.values())
        ):
            raise ValueError(f"{place} {settings} is not of the form {{q: 14, k: 4}}")
        if not 2 <= settings["q"] <= 256 or not 1 <= settings["k"] <= MOST_MULTIPLIERS:
            raise ValueError(f"q and k of {place} are {settings}, not 2 to 256 and 1 to {MOST_MULTIPLIERS}")
        return shape_for_q(settings["q"], settings["k"])

    def shape_from(self, value: dict[str, Any]) -> Shape:
        return CodeShape(value["q"], value["k"], value["word_bits"], value["limit"])

    def fit(self, rows: Tensor, shape: Shape, seed: int) -> ScaledCode:
        assert isinstance(shape, CodeShape)
        return fit_rows(rows, shape, seed)

    def vector_from(self, fitted: dict[str, Any], shape: Shape) -> VectorCode:
        assert isinstance(shape, CodeShape)
        scaled = ScaledCode(shape.with_multipliers(tuple(fitted["multipliers"])), float(fitted["unit"]))
        return centered_from(scaled, fitted["centers"]) if "centers" in fitted else scaled

    def weight_code(self, shape: Shape, multipliers: tuple[int, ...] | None) -> WeightCode:
        assert isinstance(shape, CodeShape)
        return shape.with_multipliers(tuple(range(1, shape.k + 1)) if multipliers is None else multipliers)

    def decoded(self, code: WeightCode, tensors: Mapping[str, Tensor], entries: int) -> Tensor:
        assert isinstance(code, NestedCode)
        scale = tensors["row_scale"].view(torch.bfloat16).float()
        return for_device(scale.device).unpack(tensors["words"], entries, code).float() * scale[:, None]

    def rounder(self, target: Tensor, rows: list[int], shape: Shape, seed: int) -> Rounder | None:
        return None

    def search(
        self, target: Tensor, rows: list[int], shape: Shape, seed: int, factor: Tensor | None, paths: int
    ) -> RoundedRows:
        raise NotImplementedError("rounded by columns")
