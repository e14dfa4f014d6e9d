"""Predicts how long a quantization will take: operations are counted, and their rates measured on small pieces.

Predicted and measured with 2 CPU cores: 44 s and 49 s for W4A4KV4 of the demo model from a folder, 45 s and 62 s from
its GGUF file, 572 s and 369 s for W4 of 24 random layers (docs/large-models.md).
"""

import math
import time
from collections.abc import Callable

import torch

from ..base.device import synchronize
from ..calibration.statistics import NOISE_TOKENS
from ..codecs.registry import codec_of, fit_vectors, weights_only
from ..codecs.weights import Shape
from ..kernels import for_device
from ..modules.inputs import padded_size
from ..tuning.settings import TuneSettings
from .output_gradients import windows_of
from .plan import Plan
from .recipe import Recipe

SIZE = 768  # order of the matrices whose products are timed: some milliseconds each on a CPU
BLOCKS = 1 << 14  # blocks of 8 entries whose rounding is timed
# Cost of an input's factorization in float64 products of order n. The Cholesky factor is n³/3 operations, a sixth of a
# product, and the inverse of H + J a whole one; the rest is an allowance for triangular solves, which are slower.
DOUBLE = 3.0
# Operations for each row and n² while rows are rounded: 2 of the product for the target, 1 of the feedback, which
# multiplies with one triangle only.
FEEDBACK = 2.0 + 1.0
# Allowances, not counts:
OVERHEAD = 1.3  # factor for reading, writing, rotating and measuring errors
START = 10.0  # seconds for libraries, hashes, text and the files around the layers
LAYER = 0.4  # seconds for each layer, however small it is: hooks, fits, its file
# Passes of the model in a sequential calibration, about: one of the original, one of the quantized layer, and for each
# distinct input the part of the layer in front of it.
PASSES = 4.0
STEP = 5.0  # cost of a tuning step in forwards of the original: measured, the original takes a fifth of a step
CHECK = 3.0  # cost of a held-out window in such forwards: a step without the backward pass


def estimate_seconds(plan: Plan, recipe: Recipe, device: str) -> float:
    """Predicts the seconds of one process from start to end, with calibration, and tuning where the recipe has it.

    Args:
        plan: counts of the model's matrices.
        recipe: settings of the quantization.
        device: device of the run, on which the rates are measured now.
    """
    where = torch.device(device)
    single, double = _product_rate(where, torch.float32), _product_rate(where, torch.float64)
    half = max(single, _product_rate(where, torch.bfloat16))
    tokens = recipe.samples * recipe.seqlen
    entries = sum(row.matrices * row.out_features * row.in_features * row.reached for row in plan.rows)
    forward = 2.0 * plan.passes * entries * tokens / half
    widths = {(row.in_features, row.matrices): padded_size(row.in_features) for row in plan.rows}
    reached = {(row.in_features, row.matrices): row.reached for row in plan.rows}
    # experts that are measured in a later pass add to the sum of all experts in the first one
    sums = {key: share * (2 if share < 1 and plan.passes > 1 else 1) for key, share in reached.items()}
    gram = sum(2.0 * tokens * sums[key] * n**2 * key[1] / _integer_rate(where) / 2 for key, n in widths.items())
    if recipe.sequential:
        forward, gram = PASSES * forward, 3 * gram  # E[x₀ xᵀ] is not symmetric: it costs as much as two of H
    factors = sum(2.0 * DOUBLE * n**3 * count / double for (_, count), n in widths.items())
    feedback = sum(
        FEEDBACK * row.matrices * row.out_features * padded_size(row.in_features) ** 2 / single for row in plan.rows
    )
    shape = recipe.shape("weight") or recipe.shape("act") or recipe.shape("kv")
    assert shape is not None
    rows = torch.randn(BLOCKS // 64, 512, device=where)
    vectors = recipe.shape("act") or recipe.shape("kv") or shape
    fit, one, weight = _coding_times(shape, vectors, rows, recipe.search_paths)
    fits = sum(count for _, count in widths) + 2 * plan.layers
    encode = weight * plan.weights
    noise = 0.0
    if recipe.shape("act") is not None:  # each input is rounded on a sample of tokens, and J is a product like H
        sampled = min(NOISE_TOKENS, tokens)
        noise = one * sampled * sum(n * count for (_, count), n in widths.items())
        noise += gram * sampled / tokens
    coded = factors + feedback + encode if recipe.shape("weight") is not None else 0.0
    tuning = _tuning_passes(recipe) * 2.0 * plan.parameters / half
    across = 0.0
    if recipe.output_metric != "none":
        across = backward_operations(plan, recipe) / half + across_operations(plan, recipe) / single
    return START + LAYER * plan.layers + OVERHEAD * (forward + gram + noise + coded + fit * fits + across) + tuning


def backward_operations(plan: Plan, recipe: Recipe) -> float:
    """Operations of the passes forward and backward; no weight has a gradient, so one costs as much as the other."""
    return 4.0 * plan.parameters * math.prod(windows_of(recipe))


def across_operations(plan: Plan, recipe: Recipe) -> float:
    """Operations of the metrics of outputs, their factors, and the feedback from row to row, twice what it is for each
    matrix by itself: some are stacked."""
    tokens = math.prod(windows_of(recipe))
    of_rows = ((row.matrices, row.out_features, row.in_features) for row in plan.rows)
    return sum(2 * count * (2.0 * tokens * m**2 + DOUBLE * m**3 + m**2 * n) for count, m, n in of_rows)


def _coding_times(shape: Shape, vectors: Shape, rows: torch.Tensor, paths: int) -> tuple[float, float, float]:
    """Measured seconds: of fitting a code of `vectors`, of rounding one entry of a vector to it, and of rounding one
    entry of a weight to a code of `shape`."""
    weight = _time(codec_of(shape).trial(rows, shape, paths)) / rows.numel()
    if weights_only(vectors.codec):
        return 0.0, weight, weight
    code = fit_vectors(rows[:64], vectors, 0)
    return _time(lambda: fit_vectors(rows[:64], vectors, 0)), _time(lambda: code.round(rows)) / rows.numel(), weight


def _tuning_passes(recipe: Recipe) -> float:
    """Cost of a tuning in tokens that pass through the original: STEP for each token of a step, CHECK for each of a
    held-out window."""
    if recipe.tune is None:
        return 0.0
    settings = TuneSettings.from_dict(recipe.tune)
    windows = STEP * settings.steps * settings.batch + CHECK * (settings.checks + 1) * settings.held_out
    return windows * settings.seqlen


def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a matrix product."""
    x = torch.randn(SIZE, SIZE, device=device).to(dtype)
    return 2.0 * SIZE**3 / _time(lambda: x @ x)


def _integer_rate(device: torch.device) -> float:
    """Operations a second of an exact product of int8 matrices."""
    v = torch.ones(SIZE, SIZE, dtype=torch.int8, device=device)
    integer_product = for_device(device).integer_product
    return 2.0 * SIZE**3 / _time(lambda: integer_product(v, v))


def _time(work: Callable[[], object]) -> float:
    """Seconds of the faster of two runs, after one run to warm up."""
    best = float("inf")
    for run in range(3):
        synchronize()
        start = time.monotonic()
        work()
        synchronize()
        best = min(best, time.monotonic() - start) if run else best
    return max(best, 1e-6)
