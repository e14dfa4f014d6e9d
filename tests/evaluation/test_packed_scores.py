"""A window is scored with the keys and values that generation would see: those of the packed cache."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.evaluation.perplexity import Totals, score_window
from nestquant_cli.models.source import resolve
from nestquant_cli.modules.cache import is_packed
from nestquant_cli.pipeline.quantize import quantize
from nestquant_cli.pipeline.recipe import Recipe

TOKENS = 160


@pytest.fixture(scope="module")
def packed(tiny_model_folder: Path, tiny_text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    """The tiny model with a 2-bit cache and nothing else quantized: its rounding is far from nothing."""
    folder = tmp_path_factory.mktemp("kv2") / "packed"
    recipe = Recipe(weight_bits=16, act_bits=16, kv_bits=2, dataset=str(tiny_text_file), samples=2, seqlen=64)
    quantize(resolve(str(tiny_model_folder)), recipe, folder, "cpu")
    return load_model(resolve(str(folder)))


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 300, (TOKENS,), generator=torch.Generator().manual_seed(0))


def in_steps(model: PreTrainedModel, ids: torch.Tensor, size: int) -> torch.Tensor:
    """Log-probabilities (tokens - 1, vocabulary) of a model that gets `size` tokens at a time and keeps its cache."""
    cache, parts = None, []
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, size):
            step = model(
                input_ids=ids[None, start : min(start + size, len(ids) - 1)], past_key_values=cache, use_cache=True
            )
            cache = step.past_key_values
            parts.append(step.logits[0])
    assert is_packed(cache)
    return torch.cat(parts).float().log_softmax(dim=-1)


@pytest.mark.parametrize("size", [1, 48])
def test_scores_are_those_of_generation_token_by_token(
    packed: PreTrainedModel, tiny_model_folder: Path, ids: torch.Tensor, size: int
) -> None:
    original = load_model(resolve(str(tiny_model_folder)))
    with torch.inference_mode():
        found = score_window([packed], original, ids, 0)[0]
        reference = original(input_ids=ids[None]).logits[0, :-1].log_softmax(dim=-1)
    steps, targets = in_steps(packed, ids, size), ids[1:, None]
    expected = Totals(
        loss=-steps.gather(1, targets).sum().item(),
        baseline_loss=-reference.gather(1, targets).sum().item(),
        kl=(reference.exp() * (reference - steps)).sum().item(),
        agreed=int((reference.argmax(1) == steps.argmax(1)).sum()),
    )
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    assert found.kl == pytest.approx(expected.kl, rel=1e-3) and found.kl > 1
    assert found.baseline_loss == pytest.approx(expected.baseline_loss, rel=1e-5)
    assert abs(found.agreed - expected.agreed) <= 1
