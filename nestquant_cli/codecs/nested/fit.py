"""Fits the scales β_i = β₀·m_i of a nested code to data."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...e8.code import BLOCK, INT8_LIMIT
from ...e8.scales import exchange, mean_error, shortest_path
from ...e8.shape import CodeShape
from ...e8.voronoi import gauge
from ...kernels import for_device
from .code import ScaledCode

# Blocks a fit looks at: on Gaussian and heavier-tailed blocks at 2, 3 and 4 bits the fitted code errs at most 4 %,
# and mostly less than 1 %, more than one fitted to 25 times as many.
SAMPLE_BLOCKS = 4096
# Candidates for β₀·q. The int8 range wants few large steps; without it, finer multipliers of a smaller β₀ do better.
_UNITS_INT8 = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_UNITS_WIDE = (0.3, 0.4, 0.5)
_EXCHANGED = 3  # of the candidates for β₀, how many are worth improving
SECOND_MOMENT = 929 / 12960  # of E8, normalized: mean squared rounding error an entry at unit cell volume
# How far inside the boundary a clipped block lands, in lattice units; fits measured errors within 10 %.
CLIP_MARGIN = 0.7
_LARGEST_BETA = 16.0  # largest β·q tried, in units of the row's root mean square


def fit_rows(rows: Tensor, shape: CodeShape, seed: int) -> ScaledCode:
    """`fit_scales` on a seeded sample of rows (n, entries) of any size; any code does for zeros alone."""
    blocks = sample_blocks(rows, seed)
    return fit_scales(blocks if len(blocks) else blocks.new_zeros(1, BLOCK), shape)


def fit_scales(blocks: Tensor, shape: CodeShape) -> ScaledCode:
    """Chooses β₀ and the multipliers with the least mean squared error on a sample.

    Args:
        blocks: (n, 8) float32 from rows divided by their root mean square; all are used.
        shape: q, k, word size and range.

    Returns:
        the code; it has fewer than k multipliers only when the sample calls for no more.
    """
    reach = gauge(blocks)
    trials = []
    for side in _UNITS_INT8 if shape.limit <= INT8_LIMIT else _UNITS_WIDE:
        unit = side / shape.q / 2
        multipliers = torch.arange(1, int(_LARGEST_BETA / side) + 1)
        errors = held_errors(blocks, unit, multipliers, shape)
        penalty = clipped_errors(blocks, reach, unit, multipliers, shape).cpu().numpy()
        path = shortest_path(errors, penalty, shape.k)
        trials.append((mean_error(errors, penalty, path), unit, errors, penalty, path))
    trials.sort(key=lambda trial: trial[0])
    best: tuple[float, ScaledCode] | None = None
    for _, unit, errors, penalty, path in trials[:_EXCHANGED]:
        chosen = exchange(errors, penalty, path)
        error = mean_error(errors, penalty, chosen)
        if best is None or error < best[0]:
            code = shape.with_multipliers(tuple(i + 1 for i in chosen))
            best = error, ScaledCode(code, unit)
    assert best is not None
    return best[1]


def held_errors(blocks: Tensor, unit: float, multipliers: Tensor, shape: CodeShape) -> NDArray[np.float32]:
    """Squared error of each block (n, 8) under each multiplier: (n, candidates), infinite where it overloads."""
    units = torch.full((len(multipliers),), unit)
    errors = for_device(blocks.device).block_errors(blocks, units, multipliers, shape.q, shape.limit)
    return np.asarray(errors.cpu().numpy())


def clipped_errors(blocks: Tensor, reach: Tensor, unit: float, multipliers: Tensor, shape: CodeShape) -> Tensor:
    """Squared error of each block when it is pulled back into the code under each multiplier, plus rounding.

    Args:
        blocks: (n, 8).
        reach: (n,) the gauge of the blocks.
        unit: size of v = 1.
        multipliers: (candidates,) integer.
        shape: q and the range.

    Returns:
        (n, candidates) float32.
    """
    m = multipliers.to(blocks.device, torch.float32)
    largest = (shape.limit / m - 2 * CLIP_MARGIN).clamp(min=1.0)  # (candidates,) of |u|, in doubled coordinates
    at_one = torch.maximum(
        reach[:, None] / (2 * (shape.q - CLIP_MARGIN)), blocks.abs().amax(-1, keepdim=True) / largest
    )  # (n, candidates) reach beyond the code if u = 1 were 1
    beyond = (at_one / (unit * m)).clamp(min=1.0)
    rounding = BLOCK * SECOND_MOMENT * (2 * unit * m).square()
    return blocks.square().sum(-1)[:, None] * (1 - 1 / beyond).square() + rounding


def sample_blocks(x: Tensor, seed: int) -> Tensor:
    """Up to SAMPLE_BLOCKS blocks (n, 8) float32 of rows x (rows, entries) divided by their root mean square, seeded."""
    blocks = x.shape[0] * x.shape[1] // BLOCK
    norm = x.float().square().mean(-1, keepdim=True).sqrt()
    if blocks > SAMPLE_BLOCKS:
        generator = torch.Generator().manual_seed(seed)
        at = torch.randint(0, blocks, (SAMPLE_BLOCKS,), generator=generator).to(x.device)
        row = at // (x.shape[1] // BLOCK)
        picked = x.reshape(-1, BLOCK)[at].float() / norm[row]
    else:
        picked = (x.float() / norm).reshape(-1, BLOCK)
    return picked[torch.isfinite(picked).all(-1)]  # rows of zeros say nothing about the scales


def gaussian_error(scaled: ScaledCode, blocks: Tensor) -> float:
    """Mean squared error per entry on blocks (n, 8) of unit variance."""
    scale = torch.full((blocks.shape[0],), scaled.unit)
    v, _, _ = for_device(blocks.device).quantize(blocks, scale, scaled.code)
    return float((blocks - scaled.unit * v).square().mean())
