"""What a quantization would write and need, from the model's configuration alone."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..lattice.code import row_bytes
from ..models.source import Source, load_config
from ..models.structure import find_decoder, linears, refuse_stray_matrices
from ..modules.inputs import padded_size
from .recipe import Recipe

ROW_SCALE_BYTES = 2


@dataclass(frozen=True)
class PlanRow:
    """Matrices of one name and shape over all layers; bits count words and row scales."""

    name: str
    matrices: int
    out_features: int
    in_features: int
    bits: float
    bytes: int


@dataclass(frozen=True)
class Plan:
    """Prediction for a whole model: bytes of tensors, and the memory of the run."""

    rows: list[PlanRow]
    weights: int
    file_bytes: int
    memory_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Of the quantized matrices."""
        return sum(row.bytes for row in self.rows) * 8 / self.weights


def make_plan(source: Source, recipe: Recipe) -> Plan:
    """Builds the model without its weights and counts.

    Raises:
        NestQuantError: the model is of a kind that is not supported.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(source))
    decoder = find_decoder(model)
    refuse_stray_matrices(model, decoder)
    shapes: dict[tuple[str, int, int], int] = {}
    for layer in decoder.layers:
        for name, linear in linears(layer).items():
            key = (name, linear.out_features, linear.in_features)
            shapes[key] = shapes.get(key, 0) + 1
    rows = [_row(name, count, out, features, recipe) for (name, out, features), count in shapes.items()]
    weights = sum(row.matrices * row.out_features * row.in_features for row in rows)
    rest = 2 * (_parameters(model) - weights)
    total = sum(row.bytes for row in rows) + rest
    return Plan(rows, weights, total, _memory(model, rows, recipe))


def _row(name: str, count: int, out_features: int, in_features: int, recipe: Recipe) -> PlanRow:
    shape = recipe.shape("weight")
    if shape is None:
        one = 2 * out_features * in_features
    else:
        one = out_features * (row_bytes(padded_size(in_features), shape.word_bits) + ROW_SCALE_BYTES)
    return PlanRow(name, count, out_features, in_features, one * 8 / (out_features * in_features), count * one)


def _memory(model: PreTrainedModel, rows: list[PlanRow], recipe: Recipe) -> int:
    """The model in 16 bits, the hidden states, and the matrices of the layer with the widest input in float64."""
    widest = max(padded_size(row.in_features) for row in rows)
    hidden = recipe.samples * recipe.seqlen * model.config.get_text_config(decoder=True).hidden_size * 2
    return 2 * _parameters(model) + hidden + 5 * 8 * widest**2


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
