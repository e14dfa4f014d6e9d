"""vLLM with a packed cache says what transformers says: in batches, in chunks, with shared prefixes, after aborts."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nestquant_cli.integrations.vllm.cache.batch import Slots, batch_of
from tests.families import load, random_ids
from tests.integrations.vllm.serving import answer, needs_vllm, quantized, run_program

pytestmark = needs_vllm

ENGINE = Path(__file__).with_name("steps.py")
LENGTHS, HEAD_SIZE = (70, 9, 40, 1), 32
KV4: dict[str, Any] = {"weight_bits": 16, "act_bits": 16, "kv_bits": 4}
W4A4KV4: dict[str, Any] = {"weight_bits": 4, "act_bits": 4, "kv_bits": 4}


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path, tiny_text_file: Path
) -> Callable[..., Path]:
    """Quantizes a tiny random model of a family with four query heads."""

    def make(family: str, key_heads: int, **settings: Any) -> Path:
        place, heads = tmp_path_factory.mktemp(family), (4, key_heads, HEAD_SIZE)
        return quantized(place, family, heads, tiny_tokenizer_folder, tiny_text_file, **settings)

    return make


def run(folder: Path, tokens: int = 10, **settings: Any) -> tuple[dict[str, Any], str]:
    """What the engine says, and its log."""
    done = run_program(ENGINE, folder, [settings, prompts(), tokens])
    return answer(done), done.stdout + done.stderr


def prompts() -> list[list[int]]:
    return [random_ids(1, tokens, seed=tokens)[0].tolist() for tokens in LENGTHS]


def differences(folder: Path, answers: list[dict[str, Any]]) -> torch.Tensor:
    """Of the log-probabilities of an engine's tokens, to those of a forward of transformers."""
    model, found = load(folder, dtype=torch.float32).eval(), []
    for ids, said in zip(prompts(), answers, strict=True):
        tokens = torch.tensor([ids + said["tokens"]])
        with torch.inference_mode():
            scores = model(tokens).logits[0].float().log_softmax(-1)
        own = scores[len(ids) - 1 : -1].gather(1, tokens[0, len(ids) :, None])[:, 0]
        found.append((own - torch.tensor(said["scores"])).abs())
    return torch.cat(found)


def check(folder: Path, result: dict[str, Any], log: str) -> None:
    """A key that is rounded the other way, where its last bits differ, moves what follows; most move by nothing.

    Packing moves a log-probability of these models by 0.07 or more on average.
    """
    assert "keys and values take" in log and "stay in 16 bits" not in log
    for way in ("first", "again", "after"):
        found = differences(folder, result[way])
        assert found.median() < 1e-4 and found.mean() < 0.01


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", KV4),
        ("llama", W4A4KV4),
        ("mistral", KV4 | {"kv_bits": 3.5}),  # each layer sees the last 12 tokens
        ("gemma3", KV4 | {"kv_bits": 4.5}),  # every other layer does
    ],
    ids=["kv4", "w4a4kv4", "window-kv3.5", "alternating-kv4.5"],
)
def test_answers_and_capacity(family: str, settings: dict[str, Any], checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(family, 2, **settings)
    result, log = run(folder)
    check(folder, result, log)
    vector = HEAD_SIZE // 8 * int(settings["kv_bits"] * 8) // 8 + 2
    layers = 2  # that have the same window, and so are one group of pages
    assert result["capacity"] == pytest.approx(2**30 / (layers * 2 * 2 * vector), rel=1e-3)
    assert any(said["cached"] >= 64 for said in result["again"])


def test_preempted_requests(checkpoint: Callable[..., Path]) -> None:
    """Five pages of 32 tokens for requests that need eleven in the end: some start again."""
    folder = checkpoint("llama", 2, **KV4)
    result, log = run(folder, 40, max_model_len=128, num_gpu_blocks_override=6)
    check(folder, result, log)
    assert result["preempted"] > 0


@pytest.mark.parametrize(
    ("key_heads", "settings"),
    [(2, W4A4KV4 | {"tensor_parallel": 2}), (1, W4A4KV4)],
    ids=["one-head-each-in-parts", "the-same-head-exchanged"],
)
def test_two_processes(key_heads: int, settings: dict[str, Any], checkpoint: Callable[..., Path]) -> None:
    """Each has the centers of its own key heads."""
    folder = checkpoint("llama", key_heads, **settings)
    result, log = run(folder, tensor_parallel_size=2)
    check(folder, result, log)


def test_what_cannot_be_packed_stays_in_16_bits(checkpoint: Callable[..., Path]) -> None:
    """Gemma 2 caps its scores."""
    result, log = run(checkpoint("gemma2", 2, **KV4))
    assert log.count("stay in 16 bits") == 1 and "soft-capped" in log
    assert result["first"][0]["tokens"] == result["after"][0]["tokens"]


def test_all_layers_of_a_step_work_out_once_where_tokens_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the engine says something else to a layer than to the batch that it belongs to."""
    from nestquant_cli.integrations.vllm.cache import v0_32

    numbers = torch.tensor([3, 4])
    slots = Slots(numbers)
    batch = batch_of(torch.tensor([0, 1, 2]), torch.tensor([1, 1]), torch.zeros(2, 1, dtype=torch.int32), slots)
    context = SimpleNamespace(attn_metadata={"one": batch, "two": batch, "bare": None})
    monkeypatch.setattr(v0_32, "get_forward_context", lambda: context)
    assert all(v0_32._slots_of_step(name, numbers) is slots for name in ("one", "two"))
    assert all(v0_32._slots_of_step(name, numbers) is not slots for name in ("bare", "three"))
    other = v0_32._slots_of_step("one", numbers.clone())
    assert other is not slots and torch.equal(other.numbers, numbers)
    context.attn_metadata = None  # while the engine warms up
    assert v0_32._slots_of_step("one", numbers).numbers is numbers
