"""Quantizes the matrices of one decoder layer from its statistics."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.errors import NestQuantError
from ..calibration.statistics import InputStatistics
from ..codecs.registry import codec_of
from ..codecs.weights import Shape, WeightCode
from ..parallel.tiles import over_rows, product
from ..rotation.reflections import rotation_for
from ..rotation.seeds import dual, scaled
from .factors import Feedback, feedback
from .row_feedback import row_feedbacks

logger = logging.getLogger("nestquant")


@dataclass(frozen=True)
class QuantizedMatrix:
    """One packed weight.

    Attributes:
        tensors: the stored tensors, as `code.tensors` describes them.
        code: code of the weights.
        record: errors and counts, for the report.
    """

    tensors: dict[str, Tensor]
    code: WeightCode
    record: dict[str, Any]


def quantize_group(
    linears: dict[str, nn.Linear],
    statistics: InputStatistics,
    shape: Shape,
    seed: int,
    damping: float,
    place: str,
    *,
    rotated: bool = True,
    feeding: bool = True,
    aware: bool = True,
    paths: int = 1,
    metrics: Iterable[Tensor] = (),
) -> dict[str, QuantizedMatrix]:
    """Quantizes the Linears that share one input: one factorization, one code, all rows at once.

    Args:
        linears: the layer's Linears by name; those in statistics.members are quantized.
        statistics: statistics of their input.
        shape: shape of the weight code.
        seed: seed of the rotation and of the fits.
        damping: first step of the ladder.
        place: name of the layer, for errors.
        rotated: whether the basis of the statistics is a rotated one.
        feeding: whether errors are fed back to the columns that are not rounded yet (LDLQ).
        aware: whether target and metric take the noise of the input into account (QA-LDLQ).
        paths: number of paths of the search over rows; 1 is LDLQ.
        metrics: metrics (m, m) float32 of the outputs, for feedback from row to row: of some of the members' rows after
            the other; empty for none.

    Returns:
        by name, in the order of statistics.members.
    """
    members = [linears[name] for name in statistics.members]
    rows = [member.out_features for member in members]
    W = _rotated(members, statistics, seed if rotated else None)
    noise = statistics.noise if aware else torch.zeros_like(statistics.noise)
    first = f"{place}.{statistics.members[0]}"
    codec = codec_of(shape)
    step = Feedback(W, None, None, 0.0)
    others = statistics.cross, statistics.residual
    if feeding or noise.any() or any(other is not None for other in others):
        step = feedback(W, statistics.hessian, noise, damping, first, codec.columns, *others)
    _refuse_overflow(W, rows, statistics.members, place)
    if step.damping > damping:
        logger.warning("%s: H + J is singular, damping %g was needed", first, step.damping)
    if not feeding:
        step = replace(step, lower=None, blocks=None)
    step = replace(step, across=row_feedbacks(metrics, W))
    rounded = codec.quantize(step, rows, shape, seed, paths)
    parts = [tensor.split(rows) for tensor in row_errors(W, rounded.values, statistics)]
    result = {}
    for number, name in enumerate(statistics.members):
        delta, power, output_delta, output_power = (part[number] for part in parts)
        record = {
            "shape": [rows[number], members[number].in_features],
            "relative_error": _ratio(delta, power),
            "hessian_error": _ratio(output_delta, output_power),
            **rounded.records[number],
            "damping": step.damping,
            "dead_inputs": statistics.dead,
            **({} if statistics.tokens is None else {"tokens": statistics.tokens, "pooled": statistics.pooled}),
        }
        result[name] = QuantizedMatrix(rounded.tensors[number], rounded.codes[number], record)
    return result


def _rotated(members: list[nn.Linear], statistics: InputStatistics, seed: int | None) -> Tensor:
    """Weights of Linears with one input, stacked (m, n) float32, in the basis of the statistics."""
    n, device = statistics.hessian.shape[0], statistics.hessian.device
    weight = torch.cat([member.weight.detach().to(device=device, dtype=torch.float32) for member in members])
    rotation = rotation_for(n, dual(scaled(seed, statistics.factors)), statistics.reflectors, statistics.parts)
    return over_rows(rotation.apply, F.pad(weight, (0, n - weight.shape[1])))


def row_errors(W: Tensor, rounded: Tensor, statistics: InputStatistics) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per row: ‖Ŵ − W‖², ‖W‖², E|Ŵ(x + z) − W x|² and E|W x|², each (m,) float32."""
    delta = rounded - W
    noise = (rounded.square() * statistics.noise).sum(1)
    return (
        delta.square().sum(1),
        W.square().sum(1),
        (_times(delta, statistics.hessian) * delta).sum(1) + noise,
        (_times(W, statistics.hessian) * W).sum(1),
    )


def _times(rows: Tensor, hessian: Tensor) -> Tensor:
    """Rows (m, n) times H (n, n), or times its diagonal (n,)."""
    return rows * hessian if hessian.dim() == 1 else product(rows, hessian)


def _refuse_overflow(W: Tensor, rows: list[int], members: tuple[str, ...], place: str) -> None:
    """Raises NestQuantError for a row whose mean square, or whose scale in bfloat16, is beyond their range."""
    bad = torch.nonzero(~torch.isfinite(W.square().mean(-1).sqrt().to(torch.bfloat16)))
    if not len(bad):
        return
    row = int(bad[0])
    for name, count in zip(members, rows, strict=True):
        if row < count:
            raise NestQuantError(
                f"row {row} of {place}.{name} is too large for float32 arithmetic",
                "nothing was quantized",
                "repair the model, or scale that row down",
            )
        row -= count


def _ratio(part: Tensor, whole: Tensor) -> float:
    total = math.fsum(whole.tolist())  # exact, so that it is the same on any number of threads
    return math.fsum(part.tolist()) / total if total > 0 else 0.0
