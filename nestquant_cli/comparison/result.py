"""The rows of a comparison, computed from sums and checkpoints, and their JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.inspect import inspect
from ..checkpoint.manifest import REPORT
from ..evaluation.perplexity import Scores, Totals, summary
from ..storage.files import read_json
from .entries import REFERENCE


@dataclass(frozen=True)
class Row:
    """One model of a comparison; what does not exist is None.

    Attributes:
        name: name of the recipe, or REFERENCE.
        bits: nominal bits of weights, activations and KV cache, 16 where left alone.
        bits_per_weight: real bits, from the bytes on disk; None where no weight is quantized.
        perplexity, standard_error: perplexity over the windows, and its standard error.
        gap, gap_standard_error: perplexity minus that of the reference, and its standard error over the same windows.
        gap_closed: share of the gap of the row that it is compared against which this row does not have.
        kl_divergence, top1_agreement: compared with the reference, per token.
        seconds: time of the quantization; a calibration that several share counts for all of them.
        tasks: main metric and its standard error by task.
        layer_errors: mean relative output error of each decoder layer on the calibration text.
    """

    name: str
    bits: dict[str, float]
    bits_per_weight: float | None
    perplexity: float
    standard_error: float | None
    gap: float | None = None
    gap_standard_error: float | None = None
    gap_closed: float | None = None
    kl_divergence: float | None = None
    top1_agreement: float | None = None
    seconds: float | None = None
    tasks: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    layer_errors: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """All rows, the reference first, and how they were measured."""

    model: str
    against: str | None
    rows: list[Row]
    protocol: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def row_of(folder: Path, totals: Sequence[Totals], tokens: int, seconds: float | None) -> Row:
    """The row of a packed checkpoint, without what needs the other rows.

    Args:
        folder: checkpoint folder.
        totals: sums of each window.
        tokens: tokens scored in each window.
        seconds: time of its quantization; None where it is not known.
    """
    scores: Scores = summary(list(totals), tokens, 0.0, has_baseline=True)
    contents = inspect(folder)
    assert scores.baseline_perplexity is not None
    return Row(
        folder.name,
        contents.bits,
        contents.bits_per_weight,
        scores.perplexity,
        scores.standard_error,
        gap=scores.perplexity - scores.baseline_perplexity,
        gap_standard_error=gap_error(totals, tokens),
        kl_divergence=scores.kl_divergence,
        top1_agreement=scores.top1_agreement,
        seconds=seconds,
        layer_errors=layer_errors(read_json(folder / REPORT)["matrices"]),
    )


def reference_row(totals: Sequence[Totals], tokens: int) -> Row:
    """The row of the reference, from the sums of any model that was scored together with it."""
    plain = [Totals(loss=window.baseline_loss) for window in totals]
    scores = summary(plain, tokens, 0.0, has_baseline=False)
    return Row(REFERENCE, dict.fromkeys(("weight", "act", "kv"), 16.0), None, scores.perplexity, scores.standard_error)


def gap_error(totals: Sequence[Totals], tokens: int) -> float | None:
    """Standard error of a difference of two perplexities on the same windows, whose difficulty is common to both.

    By the delta method, d(exp m − exp b) = exp(m) dm − exp(b) db.
    """
    count = len(totals)
    if count < 2:
        return None
    losses = [(window.loss / tokens, window.baseline_loss / tokens) for window in totals]
    model, base = (math.exp(math.fsum(column) / count) for column in zip(*losses, strict=True))
    values = [model * loss - base * reference for loss, reference in losses]
    mean = math.fsum(values) / count
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)


def gap_closed(gap: float | None, of: float | None) -> float | None:
    """1 − gap/of: how much of another row's gap a row does not have."""
    return 1 - gap / of if gap is not None and of is not None and of > 0 else None


def layer_errors(records: dict[str, Any]) -> list[float]:
    """Mean of `hessian_error` over the matrices of each decoder layer in order; empty where no weight is quantized."""
    layers: dict[str, list[float]] = {}
    for name, record in records.items():
        words = name.split(".")
        number = next((index for index, word in enumerate(words) if word.isdigit()), None)
        if number is None:  # the embedding or the head
            continue
        layers.setdefault(".".join(words[: number + 1]), []).append(record["hessian_error"])
    return [math.fsum(errors) / len(errors) for errors in layers.values()]
