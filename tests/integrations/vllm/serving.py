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

from tests.families import load, random_ids

ENGINE = Path(__file__).with_name("engine.py")
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
    """

    differences: torch.Tensor
    same: float


def prompts() -> list[list[int]]:
    """Three prompts of different lengths, which the engine takes at once."""
    return [random_ids(1, tokens, seed=tokens)[0].tolist() for tokens in (50, 9, 2)]


def run_engine(folder: Path, environment: dict[str, str], **settings: Any) -> subprocess.CompletedProcess[str]:
    """A process with an engine; `settings` are of vllm.LLM."""
    variables = {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[3]),
    }
    arguments = json.dumps([{"enforce_eager": True} | settings, prompts(), TOKENS])
    return subprocess.run(
        [sys.executable, str(ENGINE), str(folder), arguments],
        env=os.environ | variables | environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def compare(folder: Path, environment: dict[str, str] | None = None, **settings: Any) -> Compared:
    """An engine against transformers, in float32 unless `dtype` says otherwise."""
    settings = {"dtype": "float32"} | settings
    done = run_engine(folder, environment or {}, **settings)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    model = load(folder, dtype=getattr(torch, settings["dtype"])).eval()
    differences, same = [], []
    for ids, answer in zip(prompts(), answers, strict=True):
        tensor = torch.tensor([ids])
        with torch.inference_mode():
            scores = model(tensor).logits[0].float().log_softmax(-1)[:-1].gather(1, tensor[0, 1:, None])[:, 0]
            generated = model.generate(
                tensor, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        differences.append((scores - torch.tensor(answer["prompt"])).abs())
        same += [a == b for a, b in zip(generated[0, len(ids) :].tolist(), answer["tokens"], strict=True)]
    return Compared(torch.cat(differences), sum(same) / len(same))
