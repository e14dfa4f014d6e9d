"""Predicts what a quantization would write and how much memory it would take, from the model's configuration alone."""

import math
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from ..calibration.hidden_states import DEFAULT_BUDGET
from ..calibration.text_files import suffix_of
from ..calibration.token_stream import BLOCK, can_split
from ..calibration.windows import WHOLE_UP_TO
from ..codecs.registry import codec_of
from ..models.on_demand import held_bytes
from ..models.probe import Probe
from ..models.small_matrices import Staying, refuse_stray_matrices, staying
from ..models.source import Source, load_tokenizer
from ..models.structure import Decoder, linears, open_decoder
from ..modules.inputs import padded_size
from ..tuning.settings import TuneSettings
from .examine import examine
from .recipe import Recipe

# Bytes resident once torch, transformers and Numba are loaded (600 MiB measured) and have run a layer (850 MiB).
LIBRARIES = 850 << 20
# Bytes for each entry of H + J (n, n): its Cholesky factor and its inverse in float64, and the inverse in float32.
FACTORS = 8 + 8 + 4
# Float32 matrices (rows, n) while rows are rounded: the weight, its target, the rounded matrix and the error.
ROW_COPIES = 4
# The same two where a codec searches whole rows (GLVQ). The factor, its rotated form, the triangle and the feedback of
# the learning take 4 bytes an entry each; the other 20 bytes and 2 matrices are an allowance for paths and temporaries.
SEARCH = 4 * 4 + 20
SEARCH_COPIES = ROW_COPIES + 2
# Bytes for each entry of the sums of outer products. Of H the part above the diagonal is kept in float64, half of 8.
SUMS = 4
AVERAGED = 4  # more for the widest input: H in float32, while its sum is still there
AVERAGED_CROSS = 8 + 4 + 4  # instead, in a sequential calibration: E[x₀ xᵀ] in float64 and float32, and H in float32
WHOLE = 160  # bytes for each character that a tokenizer is given at once: some 150 measured
STREAM = 4 + 4 + 8  # bytes for each token of the text: int32 ids, their copy when parts are joined, a permutation
CHARACTERS = 4  # characters of a token, assumed
JSON = 6  # bytes for each byte of a .json file, which is parsed as one value: an allowance
GZIP = 4  # a text's size in sizes of its gzipped file, assumed


@dataclass(frozen=True)
class PlanRow:
    """All matrices of one name and shape.

    Attributes:
        name: name of the matrix in its layer.
        matrices: how many there are, over all layers.
        out_features, in_features: rows and columns of each.
        bits: stored bits for each entry, words and row scales.
        bytes: stored bytes of all of them.
    """

    name: str
    matrices: int
    out_features: int
    in_features: int
    bits: float
    bytes: int


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
    """

    rows: list[PlanRow]
    layers: int
    weights: int
    parameters: int
    file_bytes: int
    hidden_bytes: int
    staying: Staying
    exact: bool

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
    """

    streamed: bool
    memory_bytes: int


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
    memory = _memory(model, open_decoder(model), streamed, recipe) + min(sizes.hidden_bytes, budget)
    memory = max(memory, LIBRARIES + _text_memory(source, recipe.dataset))
    if recipe.tune is not None:
        settings = TuneSettings.from_dict(recipe.tune)
        memory = max(memory, _tuning_memory(model, sizes.rows, sizes.file_bytes, settings))
    return Plan(**vars(sizes), streamed=streamed, memory_bytes=memory)


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
    shapes: dict[tuple[str, int, int], int] = {}
    for index, layer in enumerate(decoder.layers):
        for name, linear in linears(layer).items():
            if name not in uncalled.get(index, ()):
                key = (name, linear.out_features, linear.in_features)
                shapes[key] = shapes.get(key, 0) + 1
    item = model.dtype.itemsize
    rows = [_row(name, count, out, features, recipe, item) for (name, out, features), count in shapes.items()]
    weights = sum(row.matrices * row.out_features * row.in_features for row in rows)
    parameters = _parameters(model)
    total = sum(row.bytes for row in rows) + item * (parameters - weights)
    hidden = recipe.samples * recipe.seqlen * _kept_width(model, decoder, recipe.sequential) * item
    return Sizes(
        rows, len(decoder.layers), weights, parameters, total, hidden, staying(decoder, uncalled), seen is not None
    )


def _row(name: str, count: int, out_features: int, in_features: int, recipe: Recipe, item: int) -> PlanRow:
    shape = recipe.shape("weight")
    if shape is None:
        one = item * out_features * in_features
    else:
        forms = shape.tensors(out_features, padded_size(in_features)).values()
        one = sum(math.prod(size) * dtype.itemsize for size, dtype in forms)
    return PlanRow(name, count, out_features, in_features, one * 8 / (out_features * in_features), count * one)


def _kept_width(model: PreTrainedModel, decoder: Decoder, sequential: bool) -> int:
    """Entries kept of each token: the hidden state. A sequential calibration keeps two hidden states (the original
    model's and the quantized one's) and the inputs of one layer's Linears, of which those that are shared count once
    for each Linear here."""
    width: int = model.config.get_text_config(decoder=True).hidden_size
    if not sequential:
        return width
    return 2 * width + max(sum(linear.in_features for linear in linears(layer).values()) for layer in decoder.layers)


def _memory(model: PreTrainedModel, decoder: Decoder, streamed: bool, recipe: Recipe) -> int:
    """Predicted peak without hidden states, in bytes: libraries + max(embeddings + one layer, one layer + work).

    Of a layer's experts no more than `models.on_demand.EXPERTS` bytes are held. Work is the sums of outer products and,
    for the input where it is largest, FACTORS·n² + 4·ROW_COPIES·n·rows. Where the model is loaded whole, libraries +
    all weights + work. Predicted and measured on the demo model: 0.92 and 0.98 GiB streamed, 1.2 and 1.25 GiB whole;
    on 24 random layers 1.9 and 1.65 GiB.
    """
    item = model.dtype.itemsize
    layer = max(decoder.layers, key=_parameters)
    one = held_bytes(layer)
    around = item * (_parameters(model) - sum(map(_parameters, decoder.layers)))
    widths = [padded_size(linear.in_features) for linear in linears(layer).values()]
    averaged = AVERAGED_CROSS if recipe.sequential else AVERAGED
    sums = SUMS * sum(n**2 for n in set(widths)) + averaged * max(widths) ** 2
    shape = recipe.shape("weight")
    searched = shape is not None and codec_of(shape).columns is None
    factors, copies = (SEARCH, SEARCH_COPIES) if searched else (FACTORS, ROW_COPIES)
    work = sums + max(
        factors * n**2 + 4 * copies * n * rows
        for n, rows in zip(widths, (linear.out_features for linear in linears(layer).values()), strict=True)
    )
    held = max(around + one, one + work)
    return LIBRARIES + (held if streamed else item * _parameters(model) + work)


def _text_memory(source: Source, dataset: str) -> int:
    """Bytes that reading and tokenizing a local file of calibration text takes: WHOLE for each character of a block
    and STREAM for each token. Other data sets are small, or not downloaded yet."""
    path = Path(dataset).expanduser()
    size = path.stat().st_size if path.is_file() else 0
    if dataset.lower().endswith(".gz"):
        size *= GZIP
    if size > WHOLE_UP_TO and not can_split(load_tokenizer(source)):
        return WHOLE * size
    parsed = JSON * size if suffix_of(dataset) == ".json" else 0
    return WHOLE * min(size, BLOCK) + STREAM * size // CHARACTERS + parsed


def _tuning_memory(model: PreTrainedModel, rows: list[PlanRow], packed: int, settings: TuneSettings) -> int:
    """Predicted peak of a tuning in bytes: the libraries, the original, the packed model (its file, its matrices once
    as int8 and once in the model's dtype for the backward pass), and what a window keeps for the backward pass: inputs
    and outputs of all matrices, the logits of both models and their gradient."""
    item = model.dtype.itemsize
    weights = sum(row.matrices * row.out_features * row.in_features for row in rows)
    passed = sum(row.matrices * (row.out_features + row.in_features) for row in rows)
    logits = 3 * model.config.get_text_config(decoder=True).vocab_size
    models = item * _parameters(model) + packed + (1 + item) * weights
    return LIBRARIES + models + item * settings.seqlen * (passed + logits)


def _parameters(module: nn.Module) -> int:
    """Number of entries of all parameters, of tied ones once."""
    tied = getattr(module, "all_tied_weights_keys", {})
    return sum(parameter.numel() for name, parameter in module.named_parameters() if name not in tied)
