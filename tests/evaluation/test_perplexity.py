"""Scores equal a computation by hand, a model does not diverge from itself, and damaged models are refused."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.evaluation import perplexity
from nestquant_cli.evaluation.divergence import divergence
from nestquant_cli.evaluation.perplexity import perplexity_of, score
from nestquant_cli.models.source import resolve


@pytest.fixture
def model(tiny_model_folder: Path) -> PreTrainedModel:
    return load_model(resolve(str(tiny_model_folder)))


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(0, 300, (3, 33), generator=torch.Generator().manual_seed(0))


def losses_by_hand(model: PreTrainedModel, windows: torch.Tensor) -> list[float]:
    """Mean loss of each window: softmax written out, in float64, token by token."""
    losses = []
    for window in windows:
        with torch.no_grad():
            logits = model(input_ids=window[None]).logits[0].double()
        probabilities = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
        scored = [-math.log(probabilities[place, window[place + 1]]) for place in range(len(window) - 1)]
        losses.append(sum(scored) / len(scored))
    return losses


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 300 * 5, 64 << 20])
def test_perplexity_equals_a_computation_by_hand(
    model: PreTrainedModel, windows: torch.Tensor, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity, "CHUNK_BYTES", chunk_bytes)
    scores = score(model, windows, progress=False)
    losses = torch.tensor(losses_by_hand(model, windows), dtype=torch.float64)
    assert scores.perplexity == pytest.approx(losses.mean().exp().item(), rel=1e-6)
    error = losses.mean().exp() * losses.std(correction=1) / math.sqrt(3)
    assert scores.standard_error == pytest.approx(error.item(), rel=1e-5)
    assert scores.windows == 3 and scores.seconds > 0 and scores.baseline_perplexity is None


def test_a_low_precision_model_is_scored_in_fp32(tiny_model_folder: Path, windows: torch.Tensor) -> None:
    model = load_model(resolve(str(tiny_model_folder)), dtype="bfloat16")
    expected = math.exp(sum(losses_by_hand(model, windows)) / 3)
    assert score(model, windows, progress=False).perplexity == pytest.approx(expected, rel=1e-6)


def test_a_model_does_not_diverge_from_itself(model: PreTrainedModel, windows: torch.Tensor) -> None:
    scores = score(model, windows, baseline_model=model, progress=False)
    assert scores.kl_divergence == 0 and scores.top1_agreement == 1
    assert scores.baseline_perplexity == scores.perplexity
    assert scores.baseline_standard_error == scores.standard_error


def test_divergence_from_another_model_equals_a_computation_by_hand(
    model: PreTrainedModel, windows: torch.Tensor, tmp_path: Path, make_model_folder: Callable[[Path, int], Path]
) -> None:
    original = load_model(resolve(str(make_model_folder(tmp_path / "other", 1))))
    scores = score(model, windows, baseline_model=original, progress=False)
    with torch.no_grad():
        p, q = (each(input_ids=windows).logits[:, :-1].double().softmax(dim=-1) for each in (original, model))
    assert scores.kl_divergence == pytest.approx((p * (p / q).log()).sum(dim=-1).mean().item(), rel=1e-5)
    assert scores.top1_agreement == pytest.approx((p.argmax(dim=-1) == q.argmax(dim=-1)).double().mean().item())
    assert scores.baseline_perplexity == pytest.approx(score(original, windows, progress=False).perplexity)


def test_kl_is_from_the_original_to_the_other() -> None:
    reference, other = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    kl, agreed = divergence(reference, other)
    assert kl.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert agreed.item()


def test_one_window_has_no_standard_error() -> None:
    assert perplexity_of([1.0]) == (math.e, None)
    with pytest.raises(NestQuantError, match="mean loss of 800 nats has no finite perplexity"):
        perplexity_of([800.0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_name_the_window(
    model: PreTrainedModel, windows: torch.Tensor, value: float
) -> None:
    windows[windows == 7] = 8
    windows[1, 4] = 7
    model.get_input_embeddings().weight.data[7] = value
    with pytest.raises(NestQuantError, match="logits of the model are NaN or infinite in window 1"):
        score(model, windows, progress=False)


def test_windows_that_do_not_fit_the_model_are_refused(model: PreTrainedModel) -> None:
    with pytest.raises(NestQuantError, match="makes token 300, the model knows 300"):
        score(model, torch.full((1, 8), 300), progress=False)
    with pytest.raises(NestQuantError, match="longer than the model's context of 256"):
        score(model, torch.zeros(1, 257, dtype=torch.int64), progress=False)
