"""vLLM with a packed cache says what transformers says: in batches, in chunks, with shared prefixes, after aborts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import CONFIGS, load, random_ids
from tests.integrations.vllm.serving import needs_vllm, quantized, run_program

pytestmark = needs_vllm

ENGINE = Path(__file__).with_name("steps.py")
LENGTHS, TOKENS, HEAD_SIZE = (70, 9, 40, 1), 10, 32
KV4: dict[str, Any] = {"weight_bits": 16, "act_bits": 16, "kv_bits": 4}


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path, tiny_text_file: Path
) -> Callable[..., Path]:
    """Quantizes a tiny random model of a family."""

    def make(family: str, **settings: Any) -> Path:
        place = tmp_path_factory.mktemp(family)
        return quantized(place, family, (4, 2, HEAD_SIZE), tiny_tokenizer_folder, tiny_text_file, **settings)

    return make


def run(folder: Path) -> tuple[dict[str, Any], str]:
    """What the engine says, and its log."""
    done = run_program(ENGINE, folder, [prompts(), TOKENS])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result, done.stdout + done.stderr


def prompts() -> list[list[int]]:
    return [random_ids(1, tokens, seed=tokens)[0].tolist() for tokens in LENGTHS]


def differences(folder: Path, answers: list[dict[str, Any]]) -> torch.Tensor:
    """Of the log-probabilities of an engine's tokens, to those of a forward of transformers."""
    model, found = load(folder, dtype=torch.float32).eval(), []
    for ids, answer in zip(prompts(), answers, strict=True):
        tokens = torch.tensor([ids + answer["tokens"]])
        with torch.inference_mode():
            scores = model(tokens).logits[0].float().log_softmax(-1)
        own = scores[len(ids) - 1 : -1].gather(1, tokens[0, len(ids) :, None])[:, 0]
        found.append((own - torch.tensor(answer["scores"])).abs())
    return torch.cat(found)


@pytest.mark.parametrize(
    "settings",
    [KV4, KV4 | {"kv_bits": 3.5}, {"weight_bits": 4, "act_bits": 4, "kv_bits": 4}],
    ids=["kv4", "kv3.5", "w4a4kv4"],
)
def test_answers_and_capacity(settings: dict[str, Any], checkpoint: Callable[..., Path]) -> None:
    """A key that is rounded the other way, where its last bits differ, moves what follows; most move by nothing."""
    folder = checkpoint("llama", **settings)
    result, log = run(folder)
    assert "keys and values take" in log and "stay in 16 bits" not in log
    layers = CONFIGS["llama"]().num_hidden_layers
    vector = HEAD_SIZE // 8 * (4 * 8 if settings["kv_bits"] == 4 else 28) // 8 + 2
    assert result["capacity"] == pytest.approx(2**30 / (layers * 2 * 2 * vector), rel=1e-3)
    for way in ("first", "again", "after"):
        found = differences(folder, result[way])
        assert found.median() < 1e-4 and found.mean() < 0.05
    assert any(answer["cached"] >= 64 for answer in result["again"])


def test_what_cannot_be_packed_stays_in_16_bits(checkpoint: Callable[..., Path]) -> None:
    """Gemma 2 caps its scores."""
    result, log = run(checkpoint("gemma2", **KV4))
    assert log.count("stay in 16 bits") == 1 and "soft-capped" in log
    assert result["first"][0]["tokens"] == result["after"][0]["tokens"]
