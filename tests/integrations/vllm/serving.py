"""What tests with an engine of vLLM share: running one in a process, and what transformers says of the same ids."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.families import CONFIGS, load, pack, random_ids

ROOT = Path(__file__).resolve().parents[3]
ENGINE = ROOT / "scripts" / "serving" / "engine.py"
TOKENS = 24  # that are generated
needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not here: make vllm"),
]


class Compared(NamedTuple):
    """An engine's answers beside those of transformers.

    Attributes:
        differences: of the prompts' log-probabilities.
        same: share of the greedy tokens that are equal.
        log: what the engine printed.
    """

    differences: torch.Tensor
    same: float
    log: str


def prompts() -> list[list[int]]:
    """Three prompts of different lengths, which the engine takes at once."""
    return [random_ids(1, tokens, seed=tokens)[0].tolist() for tokens in (50, 9, 2)]


def quantized(
    place: Path, family: str, heads: tuple[int, int, int], tokenizer: Path, text: Path, **settings: Any
) -> Path:
    """A packed tiny random model of a family; `heads`: query heads, key heads and a size that vLLM's attention has."""
    config = CONFIGS[family]()
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = heads
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_(0, 0.1)
        model.save_pretrained(place / "model")
    for file in tokenizer.iterdir():
        (place / "model" / file.name).write_bytes(file.read_bytes())
    return pack(place / "model", text, place / "packed", **settings)


def run_program(
    program: Path, folder: Path, arguments: list[Any], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A process of a program that makes an engine of a checkpoint, on one thread."""
    variables = {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, str(program), str(folder), json.dumps(arguments)],
        env=os.environ | variables | (environment or {}),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    """The JSON that a program printed; processes that it ends may log something behind it."""
    lines = [line for line in done.stdout.splitlines() if line.startswith(('{"', "[{"))]
    assert done.returncode == 0 and lines, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads(lines[-1])


def run_engine(
    folder: Path,
    environment: dict[str, str],
    program: Path = ENGINE,
    asked: list[list[int]] | None = None,
    **settings: Any,
) -> subprocess.CompletedProcess[str]:
    """A process with an engine that is asked the prompts `asked`, or `prompts()`; `settings` are of vllm.LLM."""
    return run_program(program, folder, [{"enforce_eager": True} | settings, asked or prompts(), TOKENS], environment)


def compare(
    folder: Path,
    environment: dict[str, str] | None = None,
    program: Path = ENGINE,
    asked: list[list[int]] | None = None,
    **settings: Any,
) -> Compared:
    """An engine against transformers, in float32 unless `dtype` says otherwise."""
    settings, asked = {"dtype": "float32"} | settings, asked or prompts()
    done = run_engine(folder, environment or {}, program, asked, **settings)
    answers = answer(done)
    model = load(folder, dtype=getattr(torch, settings["dtype"])).eval()
    differences, same = [], []
    for ids, found in zip(asked, answers, strict=True):
        tensor = torch.tensor([ids])
        with torch.inference_mode():
            scores = model(tensor).logits[0].float().log_softmax(-1)[:-1].gather(1, tensor[0, 1:, None])[:, 0]
            generated = model.generate(
                tensor, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        differences.append((scores - torch.tensor(found["prompt"])).abs())
        same += [a == b for a, b in zip(generated[0, len(ids) :].tolist(), found["tokens"], strict=True)]
    return Compared(torch.cat(differences), sum(same) / len(same), done.stdout + done.stderr)
