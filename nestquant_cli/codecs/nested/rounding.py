"""Rounds matrices to nested codes: block LDLQ, or the K-best search over rows."""

import torch
from torch import Tensor

from ...e8.code import BLOCK
from ...e8.shape import CodeShape
from ...kernels import for_device
from ...quantization.factors import Feedback
from ..ldlq import ldlq
from ..row_scale import row_scale_bits, row_scale_of
from ..weights import RoundedRows, by_matrix
from .code import ScaledCode
from .fit import fit_rows
from .row_blocks import by_row_blocks
from .row_search import search_rows


def quantize_rows(step: Feedback, rows: list[int], shape: CodeShape, seed: int, paths: int) -> RoundedRows:
    """Rounds stacked matrices with one code that is fitted to all of them; arguments as in `Codec.quantize`."""
    scaled = fit_rows(step.target, shape, seed)

    def round_some(target: Tensor, rows: list[int]) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        if paths > 1 and step.lower is not None:
            return search_rows(target, rows, step, scaled, paths)
        return round_rows(target, rows, step.lower, scaled)

    if not step.across:
        return rounded_rows(scaled, rows, *round_some(step.target, rows))
    return rounded_rows(scaled, rows, *by_row_blocks(step.target, rows, step.across, round_some))


def rounded_rows(
    scaled: ScaledCode, rows: list[int], v: Tensor, index: Tensor, scale: Tensor, clipped: list[int]
) -> RoundedRows:
    """Packs stacked matrices with rows[i] rows each; the other arguments are what `round_rows` returns."""
    words = for_device(v.device).pack(v, index, scaled.code)
    records = [
        {
            "multipliers": list(scaled.code.multipliers),
            "beta": [round(beta, 6) for beta in scaled.betas],
            "beta_histogram": torch.bincount(indices.flatten().int(), minlength=scaled.code.k).tolist(),
            "clipped_blocks": clipped[number],
        }
        for number, indices in enumerate(index.split(rows))
    ]
    tensors = {"words": words, "row_scale": row_scale_bits(scale)}
    return RoundedRows(by_matrix(tensors, rows), v.float() * scale[:, None], [scaled.code] * len(rows), records)


def round_rows(
    target: Tensor, rows: list[int], lower: Tensor | None, scaled: ScaledCode
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """LDLQ with a nested code on matrices stacked into one target.

    Args:
        target: (m, n) float32, the matrices one below the other.
        rows: number of rows of each matrix.
        lower: (n, n) float32, L of `Feedback`; None rounds without feedback.
        scaled: code of the matrices.

    Returns:
        v (m, n) integer, multiplier index (m, n/8) uint8, row scale (m,) float32 as stored, clipped blocks per matrix.
    """
    m, n = target.shape
    kernels = for_device(target.device)
    scale = row_scale_of(row_scale_bits(scaled.row_scale(target)))
    v = torch.empty(m, n, dtype=torch.int8 if scaled.code.int8 else torch.int16, device=target.device)
    index = torch.empty(m, n // BLOCK, dtype=torch.uint8, device=target.device)
    clipped = [0] * len(rows)

    def round_block(block: Tensor, number: int) -> Tensor:
        rounded, choice, overloaded = kernels.quantize(block, scale, scaled.code)
        if overloaded:  # rare, so the count per matrix may cost a second rounding
            for matrix, slices in enumerate(zip(block.split(rows), scale.split(rows), strict=True)):
                clipped[matrix] += kernels.quantize(*slices, scaled.code)[2]
        v[:, number * BLOCK : (number + 1) * BLOCK] = rounded
        index[:, number] = choice[:, 0]
        return rounded.float() * scale[:, None]

    ldlq(target, lower, round_block)
    return v, index, scale, clipped
