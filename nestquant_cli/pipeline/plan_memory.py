"""Predicts the peak memory of a run, from shapes and dtypes alone."""

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from ..calibration.expert_blocks import blocks_of
from ..calibration.text_files import suffix_of
from ..calibration.token_stream import BLOCK, can_split
from ..calibration.windows import WHOLE_UP_TO
from ..codecs.registry import codec_of
from ..models.expert_families import expert_families
from ..models.on_demand import held_bytes
from ..models.source import Source, load_tokenizer
from ..models.structure import Decoder, linears
from ..modules.inputs import padded_size
from ..tuning.settings import TuneSettings
from .plan_row import PlanRow
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


def run_memory(model: PreTrainedModel, decoder: Decoder, streamed: bool, recipe: Recipe, budget: int) -> int:
    """Predicted peak without hidden states, in bytes: libraries + max(embeddings + one layer, one layer + work).

    Of a layer's experts no more than `models.on_demand.EXPERTS` bytes are held. Work is the sums of outer products and,
    for the input where it is largest, FACTORS·n² + 4·ROW_COPIES·n·rows. Where the model is loaded whole, libraries +
    all weights + work. Predicted and measured on the demo model: 0.92 and 0.98 GiB streamed, 1.2 and 1.25 GiB whole;
    on 24 random layers 1.9 and 1.65 GiB.
    """
    item = model.dtype.itemsize
    layer = max(decoder.layers, key=parameters_of)
    one = held_bytes(layer)
    around = item * (parameters_of(model) - sum(map(parameters_of, decoder.layers)))
    widths = [padded_size(linear.in_features) for linear in linears(layer).values()]
    averaged = AVERAGED_CROSS if recipe.sequential else AVERAGED
    sums = SUMS * sum(n**2 for n in set(widths)) + averaged * max(widths) ** 2
    sums += SUMS * max(_block_entries(layer, block) for block in expert_passes(layer, budget))
    shape = recipe.shape("weight")
    searched = shape is not None and codec_of(shape).columns is None
    factors, copies = (SEARCH, SEARCH_COPIES) if searched else (FACTORS, ROW_COPIES)
    work = sums + max(
        factors * n**2 + 4 * copies * n * rows
        for n, rows in zip(widths, (linear.out_features for linear in linears(layer).values()), strict=True)
    )
    held = max(around + one, one + work)
    return LIBRARIES + (held if streamed else item * parameters_of(model) + work)


def expert_passes(layer: nn.Module, budget: int) -> list[list[list[int]]]:
    """Blocks in which a layer's experts are measured, with an input of its own for each matrix of an expert."""
    modules, families = linears(layer), expert_families(layer)
    return blocks_of([(modules[family[0]].in_features, len(family)) for family in families], budget)


def _block_entries(layer: nn.Module, block: list[list[int]]) -> int:
    """Entries of the Hessians of a block of experts."""
    modules, families = linears(layer), expert_families(layer)
    sizes = [padded_size(modules[family[0]].in_features) for family in families]
    return sum(len(experts) * n**2 for experts, n in zip(block, sizes, strict=True))


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
