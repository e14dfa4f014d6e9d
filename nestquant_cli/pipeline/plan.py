"""Predicts what a quantization would write and how much memory it would take, from the model's configuration alone."""

import math
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from ..calibration.hidden_states import DEFAULT_BUDGET
from ..codecs.weights import Shape
from ..models.expert_families import expert_families
from ..models.probe import Probe
from ..models.small_matrices import Staying, refuse_stray_matrices, staying
from ..models.source import Source
from ..models.structure import Decoder, linears, open_decoder
from ..models.tables import find_tables
from ..modules.inputs import padded_size
from ..tuning.settings import TuneSettings
from .examine import examine
from .mixed_rates import SEQLEN
from .plan_memory import (
    LIBRARIES,
    backward_memory,
    expert_passes,
    gradient_memory,
    parameters_of,
    run_memory,
    table_memory,
    text_memory,
    tuning_memory,
)
from .plan_row import PlanRow
from .recipe import Recipe
from .statistics_source import sums_budget


@dataclass(frozen=True)
class Sizes:
    """Sizes of what a quantization would write, counted from shapes and dtypes.

    Attributes:
        rows: the matrices.
        layers: decoder layers.
        weights: entries of the matrices.
        parameters: entries of all parameters, tied ones once.
        file_bytes: bytes of all tensors of the checkpoint.
        hidden_bytes: bytes of the hidden states of all calibration windows.
        staying: matrices of the decoder layers that stay in 16 bits.
        exact: whether it is known which Linears are called; else all of them are counted.
        tables: the quantized embedding and head.
    """

    rows: list[PlanRow]
    layers: int
    weights: int
    parameters: int
    file_bytes: int
    hidden_bytes: int
    staying: Staying
    exact: bool
    tables: list[PlanRow]

    @property
    def bits_per_weight(self) -> float:
        """Average bits of an entry of the quantized matrices."""
        return sum(row.bytes for row in self.rows) * 8 / self.weights


@dataclass(frozen=True)
class Plan(Sizes):
    """Prediction for a whole model.

    Attributes:
        streamed: whether the model is read layer by layer.
        memory_bytes: predicted peak memory of the run.
        passes: times that the text passes through a layer with experts, whose sums do not fit into memory together.
    """

    streamed: bool
    memory_bytes: int
    passes: int = 1


def make_plan(
    source: Source,
    recipe: Recipe,
    model: PreTrainedModel | None = None,
    budget: int = DEFAULT_BUDGET,
    dtype: str = "auto",
) -> Plan:
    """Builds the model without its weights, counts its sizes and predicts the peak memory.

    Args:
        source: the model.
        recipe: settings of the quantization.
        model: the same, where it is at hand; only shapes and dtypes are read.
        budget: bytes of hidden states that may stay in memory.
        dtype: dtype that the model is to be loaded in, where it is not at hand.

    Raises:
        NestQuantError: the model is of a kind that is not supported.
    """
    seen = None
    if model is None:
        examined = examine(source, recipe, dtype)
        model, seen = examined.model, examined.probe
    sizes = count_sizes(model, recipe, seen)
    streamed = source.kind == "folder"
    decoder = open_decoder(model)
    memory = run_memory(model, decoder, streamed, recipe, sums_budget(budget), seen)
    memory += min(sizes.hidden_bytes, budget)
    if "mixed" in (recipe.allocation, recipe.act_allocation):
        memory = max(memory, backward_memory(model, decoder, min(SEQLEN, recipe.seqlen)))
    if recipe.output_metric != "none":
        backward, kept = gradient_memory(model, decoder, recipe, budget)
        memory = max(memory + kept, backward)
    memory = max(memory, LIBRARIES + text_memory(source, recipe.dataset))
    memory = max(memory, table_memory(model, streamed, sizes.tables))
    if recipe.tune is not None:
        settings = TuneSettings.from_dict(recipe.tune)
        memory = max(memory, tuning_memory(model, sizes.rows, sizes.file_bytes, settings))
    passes = max(len(expert_passes(layer, sums_budget(budget))) for layer in decoder.layers)
    return Plan(**vars(sizes), streamed=streamed, memory_bytes=memory, passes=passes)


def count_sizes(model: PreTrainedModel, recipe: Recipe, seen: Probe | None = None) -> Sizes:
    """Counts what a quantization of `model`, whose weights need not be in memory, would write.

    Args:
        model: the model; only shapes and dtypes are read.
        recipe: settings of the quantization.
        seen: what a text reaches in the model; None counts all Linears of its decoder layers.

    Raises:
        NestQuantError: the model is of a kind that is not supported.
    """
    decoder = open_decoder(model)
    refuse_stray_matrices(model, decoder)
    uncalled = {} if seen is None else seen.uncalled
    shapes: dict[tuple[str, int, int, float], int] = {}
    for index, layer in enumerate(decoder.layers):
        experts = {name: family for family in expert_families(layer) for name in family}
        for name, linear in linears(layer).items():
            if name not in uncalled.get(index, ()):
                family = experts.get(name, ())
                own = name if not family else f"{name.rpartition('.')[0]}.*" if "expert_" in name else name
                key = (own, linear.out_features, linear.in_features, _reached(len(family), recipe, seen))
                shapes[key] = shapes.get(key, 0) + 1
    item = model.dtype.itemsize
    rows = [
        replace(_row(name, count, out, features, recipe.shape("weight"), item), reached=reached)
        for (name, out, features, reached), count in shapes.items()
    ]
    weights = sum(row.matrices * row.out_features * row.in_features for row in rows)
    parameters = parameters_of(model)
    tables = [
        _row(
            table.name,
            1,
            table.rows,
            table.columns,
            recipe.table_shape(table.part),
            item,
        )
        for table in find_tables(model, *recipe.wants_tables)
    ]
    coded = weights + sum(table.out_features * table.in_features for table in tables)
    total = sum(row.bytes for row in (*rows, *tables)) + item * (parameters - coded)
    hidden = recipe.samples * recipe.seqlen * _kept_width(model, decoder, recipe) * item
    stays = staying(decoder, uncalled)
    return Sizes(rows, len(decoder.layers), weights, parameters, total, hidden, stays, seen is not None, tables)


def _row(name: str, count: int, out_features: int, in_features: int, shape: Shape | None, item: int) -> PlanRow:
    if shape is None:
        one = item * out_features * in_features
    else:
        forms = shape.tensors(out_features, padded_size(in_features)).values()
        one = sum(math.prod(size) * dtype.itemsize for size, dtype in forms)
    return PlanRow(name, count, out_features, in_features, one * 8 / (out_features * in_features), count * one)


def _kept_width(model: PreTrainedModel, decoder: Decoder, recipe: Recipe) -> int:
    """Entries kept of each token: the hidden state. A sequential calibration keeps two hidden states (the original
    model's and the quantized one's) and the inputs of one layer's Linears, of which those that are shared count once
    for each Linear here. To correct the residual stream's error it keeps two more states, if so many are added to it.
    """
    width: int = model.config.get_text_config(decoder=True).hidden_size
    if not recipe.sequential:
        return width
    states = 4 if recipe.residual_correction else 2
    return states * width + max(sum(each.in_features for each in linears(layer).values()) for layer in decoder.layers)


def _reached(experts: int, recipe: Recipe, seen: Probe | None) -> float:
    """Fraction of the tokens that one of a layer's experts is measured on; all of them where that is not known."""
    return 1.0 if seen is None or not experts or recipe.all_experts else seen.share(experts)
