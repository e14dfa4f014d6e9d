"""One quantized decoder layer: its tensors, and its share of the layout in config.json and of the report."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration.statistics import LayerStatistics
from ..codecs.weights import Shape
from ..models.as_linears import own_tensors
from ..modules.layout import REFLECTORS, Layout, LinearLayout
from ..modules.parse_layout import parse_layout
from ..modules.unrounded import ALL_ROUNDED, Unrounded
from ..quantization.layer import QuantizedMatrix
from .recipe import Recipe
from .tables import TablesPart


@dataclass(frozen=True)
class LayerPart:
    """Share of one layer in config.json and the report.

    Attributes:
        layout: a layout of this layer alone: its linears, inputs and cache codes.
        report: record of each matrix by its full name.
    """

    layout: Layout
    report: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"layout": self.layout.to_dict(), "report": self.report}

    @staticmethod
    def from_dict(value: dict[str, Any]) -> "LayerPart":
        """Reads what `to_dict` returned."""
        return LayerPart(parse_layout(value["layout"]), value["report"])


def part_of(
    prefix: str,
    layer: nn.Module,
    statistics: LayerStatistics,
    packed: dict[str, QuantizedMatrix],
    recipe: Recipe,
    act_shapes: Mapping[str, Shape] | None = None,
) -> tuple[dict[str, Tensor], LayerPart]:
    """Puts a quantized layer together.

    Args:
        prefix: full name of the layer.
        layer: the layer with its original weights.
        statistics: statistics of its inputs.
        packed: its quantized matrices by name in the layer; empty where weights stay in 16 bits.
        recipe: settings that choose the codes.
        act_shapes: shapes of inputs' codes where they are not the recipe's, by full name; None for no input.

    Returns:
        all tensors of the layer by full name, quantized or not, and its share of layout and report.
    """
    layout, tensors, act_shapes = empty_layout(recipe), dict[str, Tensor](), act_shapes or {}
    coded = bool(packed) or recipe.shape("act") is not None
    for leader, item in statistics.inputs.items() if coded else ():
        source = f"{prefix}.{item.source or leader}"
        layout.inputs[source] = item.code
        if source in act_shapes:
            layout.act_shapes[source] = act_shapes[source]
        if item.parts > 1:
            layout.parts[source] = item.parts
        if item.factors is not None:
            layout.factors[source] = item.factors
        if item.reflectors is not None and item.source in (None, leader):
            layout.reflections[source] = len(item.reflectors)
            tensors[f"{source}.{REFLECTORS}"] = item.reflectors.to(torch.bfloat16).view(torch.int16)
        for name in item.members:
            linear = layer.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            code = packed[name].code if name in packed else None
            sizes = linear.in_features, linear.out_features
            layout.linears[f"{prefix}.{name}"] = LinearLayout(*sizes, linear.bias is not None, source, code)
    if recipe.shape("kv") is not None:
        layout.cache.append(statistics.cache)

    for name, matrix in packed.items():
        tensors |= {f"{prefix}.{name}.{leaf}": tensor for leaf, tensor in matrix.tensors.items()}
    replaced = {f"{name}.weight" for name in packed}
    for name, tensor in (layer.state_dict() if coded else own_tensors(layer)).items():
        if name not in replaced:
            tensors[f"{prefix}.{name}"] = tensor
    return tensors, LayerPart(layout, {f"{prefix}.{name}": matrix.record for name, matrix in packed.items()})


def empty_layout(recipe: Recipe) -> Layout:
    """A layout with the codes of a recipe and no layer yet."""
    weight, act, kv, value = (recipe.shape(part) for part in ("weight", "act", "kv", "value"))
    other = None if value == kv else value
    unrounded = Unrounded(recipe.kv_window, recipe.kv_sinks)
    return Layout(weight, act, kv, recipe.seed, rotation=recipe.rotation, value_shape=other, unrounded=unrounded)


def join_layouts(recipe: Recipe, parts: list[LayerPart], tables: TablesPart) -> Layout:
    """One layout of all layers, from the layouts of each in order, and of the embedding and the head.

    Without a layer that keeps keys and values in a cache, they are said to stay in 16 bits.
    """
    layout = empty_layout(recipe)
    for part in parts:
        layout.linears.update(part.layout.linears)
        layout.inputs.update(part.layout.inputs)
        layout.reflections.update(part.layout.reflections)
        layout.parts.update(part.layout.parts)
        layout.factors.update(part.layout.factors)
        layout.act_shapes.update(part.layout.act_shapes)
        layout.cache.extend(part.layout.cache)
    layout.tables.update(tables.layout)
    if not any(layout.cache):
        layout = replace(layout, kv_shape=None, cache=[], value_shape=None, unrounded=ALL_ROUNDED)
    return layout
