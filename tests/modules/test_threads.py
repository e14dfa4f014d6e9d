"""One model called by several threads at a time answers each as if it were alone: no state of a forward is shared."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

from nestquant_cli import NestQuantConfig
from nestquant_cli.modules.resident import set_resident
from tests.families import load, make_model, random_ids, save_model

THREADS, ROUNDS, STEPS = 4, 2, 16


@pytest.fixture(autouse=True)
def restless() -> Iterator[None]:
    """Threads take turns after ten microseconds, so that each is interrupted everywhere."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> Path:
    return save_model(make_model("llama"), tiny_tokenizer_folder, tmp_path_factory.mktemp("threads") / "model")


@pytest.fixture(scope="module", params=[(16, 16), (4, 4)], ids=["w4", "w4a4kv4"])
def model(request: pytest.FixtureRequest, folder: Path) -> Any:
    act_bits, kv_bits = request.param
    return load(folder, quantization_config=NestQuantConfig(bits=4, act_bits=act_bits, kv_bits=kv_bits))


def answer(model: Any, prompt: Tensor) -> Tensor:
    """Logits of a prompt and of the most likely tokens behind it, one at a time."""
    found, ids, cache = [], prompt, None
    with torch.inference_mode():
        for _ in range(STEPS):
            step = model(ids, past_key_values=cache, use_cache=True)
            found.append(step.logits)
            ids, cache = step.logits[:, -1:].argmax(-1), step.past_key_values
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("form", ["int8", "packed"])
def test_threads_get_the_answers_that_they_would_get_alone(model: Any, form: str) -> None:
    assert set_resident(model, form) == form
    prompts = [random_ids(1, 5 + number, seed=number) for number in range(THREADS * ROUNDS)]
    alone = [answer(model, prompt) for prompt in prompts]
    together = Barrier(THREADS)

    def work(number: int) -> list[Tensor]:
        together.wait()
        return [answer(model, prompt) for prompt in prompts[number::THREADS]]

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(work, range(THREADS)))
    for number, own in enumerate(found):
        for expected, logits in zip(alone[number::THREADS], own, strict=True):
            assert torch.equal(logits, expected)
