"""Perplexity of causal language models over token windows, alone or beside a baseline on the same windows.

Every window scores its seqlen - 1 last tokens from fp32 log-softmax; the perplexity is exp of the mean over all tokens.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..base.errors import NestQuantError
from ..base.finite import all_finite
from ..base.progress import track
from ..models.vocabulary import known_tokens, refuse_long_windows, refuse_unknown_tokens
from ..parallel.team import team
from .divergence import divergence

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

CHUNK_BYTES = 64 << 20  # of fp32 logits at a time, so that a vocabulary of 128k costs no more than one of 32k
NO_RESULT = "no perplexity was computed"
DAMAGED = "the model is damaged, or its dtype is too narrow: try 'nestquant verify', or another --dtype"


@dataclass(frozen=True)
class Scores:
    """Result of `score`. Figures that do not exist are None: no baseline, or no standard error of a single window.

    Attributes:
        perplexity: exp of the mean negative log-likelihood per token.
        standard_error: of the perplexity, from the spread between windows.
        windows: windows scored.
        seconds: wall time, the baseline included.
        kl_divergence: mean KL(baseline || model) per token, in nats.
        top1_agreement: fraction of tokens for which both models rank the same token first.
    """

    perplexity: float
    standard_error: float | None
    windows: int
    seconds: float
    baseline_perplexity: float | None = None
    baseline_standard_error: float | None = None
    kl_divergence: float | None = None
    top1_agreement: float | None = None


@dataclass
class Totals:
    """One window's sums over its tokens."""

    loss: float = 0.0
    baseline_loss: float = 0.0
    kl: float = 0.0
    agreed: int = 0


def score(
    model: "PreTrainedModel",
    windows: "Tensor",
    *,
    baseline_model: "PreTrainedModel | None" = None,
    progress: bool = True,
) -> Scores:
    """Scores windows one at a time; with a baseline both models see a window before the next, and nothing is stored.

    The processes of a team each score their share, and all get the same result: sums are added up in the order of the
    windows, so that it is that of a single process.

    Args:
        model: any causal language model; a packed one uses its packed KV cache by itself.
        windows: (windows, seqlen) int64 token ids.
        baseline_model: the original model, with the same vocabulary.
        progress: show a progress bar or log lines.

    Raises:
        NestQuantError: tokens outside the vocabulary, windows longer than the model's context, or logits that are NaN
            or infinite.
    """
    import torch

    start = time.monotonic()
    check_fit(model, baseline_model, windows)
    group = team()
    own = group.share(len(windows))

    def score_own() -> list[Totals]:
        with torch.inference_mode():
            numbers = track(own, "scoring windows") if progress else own
            return [score_window([model], baseline_model, windows[number], number)[0] for number in numbers]

    totals = [window for part in group.run_on_all(score_own) for window in part]
    return summary(totals, windows.shape[1] - 1, time.monotonic() - start, baseline_model is not None)


def summary(totals: list[Totals], tokens: int, seconds: float, has_baseline: bool) -> Scores:
    """The result of windows that scored `tokens` tokens each."""
    perplexity, error = perplexity_of([window.loss / tokens for window in totals])
    if not has_baseline:
        return Scores(perplexity, error, len(totals), seconds)
    baseline_perplexity, baseline_error = perplexity_of([window.baseline_loss / tokens for window in totals])
    all_tokens = tokens * len(totals)
    return Scores(
        perplexity,
        error,
        len(totals),
        seconds,
        baseline_perplexity,
        baseline_error,
        math.fsum(window.kl for window in totals) / all_tokens,
        sum(window.agreed for window in totals) / all_tokens,
    )


def perplexity_of(losses: list[float]) -> tuple[float, float | None]:
    """Perplexity and its standard error from the mean loss (nats per token) of each window.

    The error follows from that of the mean loss by the delta method: d exp(m) = exp(m) dm. One window has none.

    Raises:
        NestQuantError: the perplexity is too large for a float.
    """
    count = len(losses)
    mean = math.fsum(losses) / count
    try:
        perplexity = math.exp(mean)
    except OverflowError as error:
        raise NestQuantError(f"a mean loss of {mean:.0f} nats has no finite perplexity", NO_RESULT, DAMAGED) from error
    if count == 1:
        return perplexity, None
    variance = math.fsum((loss - mean) ** 2 for loss in losses) / (count - 1)
    return perplexity, perplexity * math.sqrt(variance / count)


def check_fit(model: "PreTrainedModel", baseline_model: "PreTrainedModel | None", windows: "Tensor") -> None:
    """Raises NestQuantError for windows that a model cannot take, or models with different vocabularies."""
    for each in (model, baseline_model):
        if each is not None:
            _check_windows(each, windows)
    if baseline_model is not None and known_tokens(model) != known_tokens(baseline_model):
        raise NestQuantError(
            f"the model has {known_tokens(model)} tokens and the baseline {known_tokens(baseline_model)}",
            NO_RESULT,
            "give the model that was quantized as the baseline",
        )


def score_window(
    models: "Sequence[PreTrainedModel]", baseline_model: "PreTrainedModel | None", ids: "Tensor", number: int
) -> list[Totals]:
    """Each model on one window (seqlen,), beside the baseline, which sees it once.

    Raises:
        NestQuantError: logits that are NaN or infinite.
    """
    baseline_logits = _logits(baseline_model, ids) if baseline_model is not None else None
    return [_totals(_logits(model, ids), baseline_logits, ids, number) for model in models]


def _totals(logits: "Tensor", baseline_logits: "Tensor | None", ids: "Tensor", number: int) -> Totals:
    totals = Totals()
    targets = ids[1:].to(logits.device)
    for rows in _chunks(len(targets), logits.shape[-1]):
        log_probabilities = _log_softmax(logits[rows], "the model", number)
        totals.loss += _loss(log_probabilities, targets[rows])
        if baseline_logits is not None:
            reference = _log_softmax(baseline_logits[rows].to(logits.device), "the baseline", number)
            totals.baseline_loss += _loss(reference, targets[rows])
            kl, agreed = divergence(reference, log_probabilities)
            totals.kl += kl.double().sum().item()
            totals.agreed += int(agreed.sum())
    return totals


def _logits(model: "PreTrainedModel", ids: "Tensor") -> "Tensor":
    """(seqlen, vocabulary) in the model's dtype."""
    return model(input_ids=ids[None].to(model.device), use_cache=False).logits[0]


def _chunks(tokens: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, CHUNK_BYTES // (4 * vocabulary))
    for first in range(0, tokens, size):
        yield slice(first, min(first + size, tokens))


def _log_softmax(logits: "Tensor", whose: str, number: int) -> "Tensor":
    logits = logits.float()  # (tokens, vocabulary)
    if not all_finite(logits):
        raise NestQuantError(f"the logits of {whose} are NaN or infinite in window {number}", NO_RESULT, DAMAGED)
    return logits.log_softmax(dim=-1)


def _loss(log_probabilities: "Tensor", targets: "Tensor") -> float:
    return -log_probabilities.gather(1, targets[:, None]).double().sum().item()


def _check_windows(model: "PreTrainedModel", windows: "Tensor") -> None:
    refuse_unknown_tokens(int(windows.max()), known_tokens(model), NO_RESULT)
    refuse_long_windows(windows.shape[1], model.config, NO_RESULT)
