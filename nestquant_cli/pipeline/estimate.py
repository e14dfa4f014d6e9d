"""How long a quantization will take: its parts are timed on small pieces, on the device that it will run on."""

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
from .plan import Plan
from .recipe import Recipe

SIZE = 768  # of the matrices that are timed
BLOCKS = 1 << 14
DOUBLE = 3.0  # (n, n) products in float64 that a factorization and what follows from it come to
OVERHEAD = 1.3  # reading, writing, rotating and measuring errors, as a factor
START = 10.0  # seconds for libraries, hashes, text and the files around the layers
LAYER = 0.4  # seconds of a layer however small it is: hooks, fits, its file
PASSES = 4.0  # of a layer, parts added up, that a sequential calibration makes
STEP = 5.0  # passes of the original that a window costs which is tuned on: its own, the packed model's, and back
CHECK = 3.0  # the same of a window that is only looked at


def estimate_seconds(plan: Plan, recipe: Recipe, device: str) -> float:
    """Seconds from start to end for one process that calibrates and, where the recipe says so, tunes; right within a
    factor of two or so."""
    where = torch.device(device)
    single, double = _product_rate(where, torch.float32), _product_rate(where, torch.float64)
    half = max(single, _product_rate(where, torch.bfloat16))
    tokens = recipe.samples * recipe.seqlen
    forward = 2.0 * plan.weights * tokens / half
    widths = {(row.in_features, row.matrices): padded_size(row.in_features) for row in plan.rows}
    gram = sum(2.0 * tokens * n**2 * count / _integer_rate(where) / 2 for (_, count), n in widths.items())
    if recipe.sequential:
        forward, gram = PASSES * forward, 3 * gram  # E[x₀ xᵀ] is not symmetric, so it costs two of the others
    factors = sum(2.0 * DOUBLE * n**3 * count / double for (_, count), n in widths.items())
    feedback = sum(
        3.0 * row.matrices * row.out_features * padded_size(row.in_features) ** 2 / single for row in plan.rows
    )
    shape = recipe.shape("weight") or recipe.shape("act") or recipe.shape("kv")
    assert shape is not None
    rows = torch.randn(BLOCKS // 64, 512, device=where)
    fit, one, weight = _coding_times(shape, rows, recipe.search_paths)
    fits = sum(count for _, count in widths) + 2 * plan.layers
    encode = weight * plan.weights
    noise = 0.0
    if recipe.shape("act") is not None:  # each input is rounded on a sample of tokens, and J is a product like H
        sampled = min(NOISE_TOKENS, tokens)
        noise = one * sampled * sum(n * count for (_, count), n in widths.items())
        noise += gram * sampled / tokens
    coded = factors + feedback + encode if recipe.shape("weight") is not None else 0.0
    tuning = _tuning_passes(recipe) * 2.0 * plan.parameters / half
    return START + LAYER * plan.layers + OVERHEAD * (forward + gram + noise + coded + fit * fits) + tuning


def _coding_times(shape: Shape, rows: torch.Tensor, paths: int) -> tuple[float, float, float]:
    """Seconds of a fit, of rounding one entry, and of rounding one of a weight."""
    weight = _time(codec_of(shape).trial(rows, shape, paths)) / rows.numel()
    if weights_only(shape.codec):
        return 0.0, weight, weight
    code = fit_vectors(rows[:64], shape, 0)
    return _time(lambda: fit_vectors(rows[:64], shape, 0)), _time(lambda: code.round(rows)) / rows.numel(), weight


def _tuning_passes(recipe: Recipe) -> float:
    """Tokens that a tuning runs through the original, or what costs as much."""
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
    """The same of an exact product of int8 matrices."""
    v = torch.ones(SIZE, SIZE, dtype=torch.int8, device=device)
    integer_product = for_device(device).integer_product
    return 2.0 * SIZE**3 / _time(lambda: integer_product(v, v))


def _time(work: Callable[[], object]) -> float:
    """Seconds of the faster of two runs, after one that does not count."""
    best = float("inf")
    for run in range(3):
        synchronize()
        start = time.monotonic()
        work()
        synchronize()
        best = min(best, time.monotonic() - start) if run else best
    return max(best, 1e-6)
