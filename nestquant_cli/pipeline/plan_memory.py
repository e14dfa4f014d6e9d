"""Predicts the peak memory of a run, from shapes and dtypes alone."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from ..calibration.expert_blocks import blocks_of, expert_bytes
from ..calibration.gram import TOGETHER
from ..calibration.text_files import suffix_of
from ..calibration.token_stream import BLOCK, can_split
from ..calibration.upper_triangle import bytes_of_sum
from ..calibration.windows import WHOLE_UP_TO
from ..codecs.registry import codec_of
from ..models.expert_families import expert_families
from ..models.on_demand import held_bytes
from ..models.probe import Probe
from ..models.source import Source, load_tokenizer
from ..models.structure import Decoder, linears
from ..modules.inputs import padded_size
from ..tuning.settings import TuneSettings
from .output_gradients import STACKED, windows_of
from .plan_row import PlanRow
from .recipe import Recipe
from .tables import TABLE_PIECE

# Bytes resident once torch, transformers and Numba are loaded (600 MiB measured) and have run a layer (850 MiB).
LIBRARIES = 850 << 20
# Bytes for each entry of H + J (n, n): its Cholesky factor and its inverse in float64, and the inverse in float32.
FACTORS = 8 + 8 + 4
# Float32 matrices (rows, n) while rows are rounded: the weight, its target, the rounded matrix and the error.
ROW_COPIES = 4
# Copies of what all matrices are given and give for the tokens of the windows that run at the same time. Blocks that
# are freed and not yet used again are in it: 0.92 GiB measured for 137 KB a token, 2 windows of 2,048 tokens, is 1.7.
RUNNING = 2
# Bytes of a kernel that oneDNN compiles for a matrix and a number of tokens, and how many numbers of tokens there are
# in an octave (`kernels.dense.in_few_sizes`): 0.2 to 0.7 MiB measured up to 360 tokens, more for more.
KERNEL = 700 << 10
SIZES = 8
# The same two where a codec searches whole rows (GLVQ). The factor, its rotated form, the triangle and the feedback of
# the learning take 4 bytes an entry each; the other 20 bytes and 2 matrices are an allowance for paths and temporaries.
SEARCH = 4 * 4 + 20
SEARCH_COPIES = ROW_COPIES + 2
AVERAGED = 4  # more for the widest input: H in float32, while its sum is still there
AVERAGED_CROSS = 8 + 4 + 4  # instead, in a sequential calibration: E[x₀ xᵀ] in float64 and float32, and H in float32
# More for E[(r₀ − r) xᵀ] of the residual stream, in float64 and float32: entries of the matrix that is added to it.
AVERAGED_RESIDUAL = 8 + 4
GRADIENT = 2  # bytes of an entry of a gradient that is kept
ACROSS = 20  # bytes for each entry of a metric of outputs (m, m): the metric, it sorted, its factor and M
WHOLE = 160  # bytes for each character that a tokenizer is given at once: some 150 measured
STREAM = 4 + 4 + 8  # bytes for each token of the text: int32 ids, their copy when parts are joined, a permutation
CHARACTERS = 4  # characters of a token, assumed
JSON = 6  # bytes for each byte of a .json file, which is parsed as one value: an allowance
GZIP = 4  # a text's size in sizes of its gzipped file, assumed


def run_memory(
    model: PreTrainedModel, decoder: Decoder, streamed: bool, recipe: Recipe, budget: int, seen: Probe | None
) -> int:
    """Predicted peak without hidden states, in bytes: libraries + max(embeddings + one layer, one layer + work).

    Of a layer's experts no more than `models.on_demand.EXPERTS` bytes are held. Work is the sums of outer products, and
    what is largest of the windows that run and of the input where rounding takes most: FACTORS·n² + 4·ROW_COPIES·n·rows
    and the layer's packed matrices. Where the model is loaded whole, libraries + all weights + work. Predicted and
    measured on the demo model: 0.92 and 0.98 GiB streamed, 1.2 and 1.25 GiB whole; on 24 random layers 1.9 and
    1.65 GiB.

    Args:
        model: the model; only shapes and dtypes are read.
        decoder: its decoder layers.
        streamed: whether the model is read layer by layer.
        recipe: settings of the quantization.
        budget: bytes of the sums of a block of experts.
        seen: what a text reaches in the model; None lets all tokens reach all experts.
    """
    item = model.dtype.itemsize
    layer = max(decoder.layers, key=parameters_of)
    one = held_bytes(layer)
    around = item * (parameters_of(model) - sum(map(parameters_of, decoder.layers)))
    work = _sum_bytes(layer, recipe, budget) + max(
        _rounding_bytes(layer, recipe), _running_bytes(layer, item, recipe, seen)
    )
    held = max(around + one, one + work)
    return LIBRARIES + (held if streamed else item * parameters_of(model) + work)


def _sum_bytes(layer: nn.Module, recipe: Recipe, budget: int) -> int:
    """Bytes of a layer's sums, with the tokens that wait for a product: of each width of an input once in a module,
    of all experts together once for each of their inputs, and of the largest block of experts."""
    families = expert_families(layer)
    of_experts = {name for family in families for name in family}
    modules = linears(layer)
    widths = [padded_size(modules[family[0]].in_features) for family in families]
    widths += {
        (name.rpartition(".")[0], padded_size(linear.in_features)): padded_size(linear.in_features)
        for name, linear in modules.items()
        if name not in of_experts
    }.values()
    waiting = min(TOGETHER, recipe.samples * recipe.seqlen)
    sums = sum(bytes_of_sum(n) + waiting * n for n in widths)
    sums += (AVERAGED_CROSS if recipe.sequential else AVERAGED) * max(widths) ** 2
    if recipe.residual_correction:
        sums += AVERAGED_RESIDUAL * max(linear.weight.numel() for linear in modules.values())
    counts = [(modules[family[0]].in_features, len(family)) for family in families]
    return sums + max(
        sum(len(block) * expert_bytes(*count) for block, count in zip(blocks, counts, strict=True))
        for blocks in expert_passes(layer, budget)
    )


def _rounding_bytes(layer: nn.Module, recipe: Recipe) -> int:
    """Bytes that rounding takes for the input where it is most, and those of the layer's packed matrices."""
    shape = recipe.shape("weight")
    searched = shape is not None and codec_of(shape).columns is None
    factors, copies = (SEARCH, SEARCH_COPIES) if searched else (FACTORS, ROW_COPIES)
    sizes = [(padded_size(linear.in_features), linear.out_features) for linear in linears(layer).values()]
    packed = 0 if shape is None else int(recipe.weight_bits / 8 * sum(n * rows for n, rows in sizes))
    return packed + max(factors * n**2 + 4 * copies * n * rows for n, rows in sizes)


def _running_bytes(layer: nn.Module, item: int, recipe: Recipe, seen: Probe | None) -> int:
    """Bytes that the windows take that run at the same time, and the kernels that are compiled for experts."""
    experts = {name: len(family) for family in expert_families(layer) for name in family}
    passed = sum(
        (linear.in_features + linear.out_features) * (seen.share(experts[name]) if seen and name in experts else 1)
        for name, linear in linears(layer).items()
    )
    at_once = min(recipe.samples, torch.get_num_threads()) * recipe.seqlen
    kernels = len(expert_families(layer)) * SIZES * recipe.seqlen.bit_length() * KERNEL
    return int(RUNNING * item * passed * at_once) + kernels


def backward_memory(model: PreTrainedModel, decoder: Decoder, tokens: int) -> int:
    """Bytes of passes forward and backward over `tokens` at the same time.

    They need the whole model, and for each token RUNNING times what all Linears are given and give, and the logits in
    float32 four times.
    """
    modules = [linear for layer in decoder.layers for linear in linears(layer).values()]
    passed = sum(linear.in_features + linear.out_features for linear in modules)
    logits = 4 * 4 * model.config.get_text_config(decoder=True).vocab_size
    item = model.dtype.itemsize
    return LIBRARIES + item * parameters_of(model) + tokens * (RUNNING * item * passed + logits)


def gradient_memory(model: PreTrainedModel, decoder: Decoder, recipe: Recipe, budget: int) -> tuple[int, int]:
    """Bytes of the passes backward for a metric of outputs, and bytes of the gradients that stay in memory after them.

    A window runs for each thread. The larger of H and G takes ACROSS bytes an entry.
    """
    samples, seqlen = windows_of(recipe)
    outputs = [linear.out_features for layer in decoder.layers for linear in linears(layer).values()]
    kept = min(budget, GRADIENT * samples * seqlen * sum(outputs))
    at_once = min(samples, torch.get_num_threads()) * seqlen
    rows = max(max(outputs), min(STACKED, 2 * max(outputs)))
    return backward_memory(model, decoder, at_once) + kept, kept + ACROSS * rows**2


def expert_passes(layer: nn.Module, budget: int) -> list[list[list[int]]]:
    """Blocks in which a layer's experts are measured, with an input of its own for each matrix of an expert."""
    modules, families = linears(layer), expert_families(layer)
    return blocks_of([(modules[family[0]].in_features, len(family)) for family in families], budget)


def table_memory(model: PreTrainedModel, streamed: bool, tables: list[PlanRow]) -> int:
    """Bytes that rounding the embedding and the head takes, one after the other: a table as it was, or the whole model
    where it is not streamed, what is stored of both, and ROW_COPIES float32 matrices of TABLE_PIECE entries."""
    item, sizes = model.dtype.itemsize, [table.out_features * table.in_features for table in tables]
    held = item * (max(sizes, default=0) if streamed else parameters_of(model))
    return LIBRARIES + held + 2 * sum(table.bytes for table in tables) + 4 * ROW_COPIES * TABLE_PIECE if tables else 0


def text_memory(source: Source, dataset: str) -> int:
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


def tuning_memory(model: PreTrainedModel, rows: list[PlanRow], packed: int, settings: TuneSettings) -> int:
    """Predicted peak of a tuning in bytes: the libraries, the original, the packed model (its file, its matrices once
    as int8 and once in the model's dtype for the backward pass), and what a window keeps for the backward pass: inputs
    and outputs of all matrices, the logits of both models and their gradient."""
    item = model.dtype.itemsize
    weights = sum(row.matrices * row.out_features * row.in_features for row in rows)
    passed = sum(row.matrices * (row.out_features + row.in_features) for row in rows)
    logits = 3 * model.config.get_text_config(decoder=True).vocab_size
    models = item * parameters_of(model) + packed + (1 + item) * weights
    return LIBRARIES + models + item * settings.seqlen * (passed + logits)


def parameters_of(module: nn.Module) -> int:
    """Number of entries of all parameters, of tied ones once."""
    tied = getattr(module, "all_tied_weights_keys", {})
    return sum(parameter.numel() for name, parameter in module.named_parameters() if name not in tied)
