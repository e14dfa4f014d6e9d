"""Perplexity of causal language models over token windows, alone or compared with a baseline on the same windows.

Every window scores its seqlen - 1 last tokens with a float32 log-softmax. The perplexity is exp of the mean over all
tokens.
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

CHUNK_BYTES = 64 << 20  # float32 logits at a time, so that a vocabulary of 128k takes no more memory than one of 32k
NO_RESULT = "no perplexity was computed"
DAMAGED = "the model is damaged, or its dtype is too narrow: try 'nestquant verify', or another --dtype"


@dataclass(frozen=True)
class Scores:
    """Result of `score`. Values are None without a baseline, and standard errors also for a single window.

    Attributes:
        perplexity: exp of the mean negative log-likelihood per token.
        standard_error: standard error of the perplexity, from the spread between windows. Most of it is that some
            windows are harder than others; the difference of two models on the same windows is known much better.
        windows: number of windows scored.
        seconds: wall time, the baseline included.
        baseline_perplexity, baseline_standard_error: those of the baseline.
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
    """Sums over the scored tokens of one window.

    Attributes:
        loss, baseline_loss: negative log-likelihood of the model and of the baseline, in nats.
        kl: KL(baseline || model), in nats.
        agreed: number of tokens for which both models rank the same token first.
    """

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
    """Scores windows one at a time. With a baseline, both models see a window before the next, and no logits are kept.

    Each process of a team scores its share of the windows. Sums are added in the order of the windows, so that the
    result is that of a single process.

    Args:
        model: any causal language model; a packed one quantizes keys and values by itself.
        windows: (windows, seqlen) int64 token ids.
        baseline_model: the original model, with the same vocabulary.
        progress: whether to show a progress bar or log lines.

    Raises:
        NestQuantError: tokens outside the vocabulary, windows longer than the model's context, or logits that are NaN
            or infinite.
    """
    import torch

    start = time.monotonic()
    check_fit(model, baseline_model, windows)
    group = team()
    share = group.share(len(windows))

    def score_share() -> list[Totals]:
        with torch.no_grad():  # tensors of inference mode have no version, by which Linears know an input again
            numbers = track(share, "scoring windows") if progress else share
            return [score_window([model], baseline_model, windows[number], number)[0] for number in numbers]

    totals = [window for share_totals in group.run_on_all(score_share) for window in share_totals]
    return summary(totals, windows.shape[1] - 1, time.monotonic() - start, baseline_model is not None)


def summary(totals: list[Totals], tokens: int, seconds: float, has_baseline: bool) -> Scores:
    """The scores of windows.

    Args:
        totals: sums of each window.
        tokens: tokens that each window scored.
        seconds: wall time of all windows.
        has_baseline: whether the sums of the baseline, KL and agreement are there.

    Raises:
        NestQuantError: the perplexity is too large for a float.
    """
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
    """Perplexity and its standard error.

    With m the mean and s the standard deviation of the losses of n windows, the perplexity is exp(m). Its standard
    error is exp(m) s / sqrt(n) by the delta method, d exp(m) = exp(m) dm. A single window has none.

    Args:
        losses: mean loss of each window, in nats per token.

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
    """Checks that windows and models fit together.

    Raises:
        NestQuantError: windows that a model cannot take, or models with different vocabularies.
    """
    _check_windows(model, windows)
    if baseline_model is not None:
        _check_windows(baseline_model, windows)
    if baseline_model is not None and known_tokens(model) != known_tokens(baseline_model):
        raise NestQuantError(
            f"the model has {known_tokens(model)} tokens and the baseline {known_tokens(baseline_model)}",
            NO_RESULT,
            "give the model that was quantized as the baseline",
        )


def score_window(
    models: "Sequence[PreTrainedModel]", baseline_model: "PreTrainedModel | None", ids: "Tensor", number: int
) -> list[Totals]:
    """Sums of each model on one window, compared with the baseline, which is run once.

    Args:
        models: causal language models.
        baseline_model: original model, or None.
        ids: (seqlen,) int64 token ids.
        number: number of the window, for messages.

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
    """Logits (seqlen, vocabulary) in the model's dtype."""
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
