"""What is measured of a model, original or packed: its logits, and whether steps and batches agree with one forward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .text import left_padded, token_ids

PADDING = 1
PROMPT, STEPS = 24, 10  # tokens: the prompt is longer than the sliding windows of the tiny models


def divergence(p: Tensor, q: Tensor) -> float:
    """Mean over tokens of the KL divergence in nats of the distributions of logits q from those of p."""
    return float(divergences(p, q).mean())


def divergences(p: Tensor, q: Tensor) -> Tensor:
    """KL divergence in nats (rows, tokens) of the distributions of logits q from those of p."""
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@torch.no_grad()
def forward(model: Any, input_ids: Tensor, use_cache: bool, **inputs: Any) -> Any:
    """The output of one forward."""
    return model(input_ids=input_ids, use_cache=use_cache, **inputs)


def logits(model: Any, input_ids: Tensor, **inputs: Any) -> Tensor:
    """Logits (rows, tokens, vocabulary) float32 of one forward without a cache."""
    found: Tensor = forward(model, input_ids, False, **inputs).logits
    return found.float()


@torch.no_grad()
def generate(model: Any, ids: Tensor, steps: int, mask: Tensor | None = None, **inputs: Any) -> tuple[Tensor, Tensor]:
    """Greedy generation: all token ids, and the logits (rows, steps, vocabulary) of each step."""
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        num_beams=1,
        pad_token_id=PADDING,
        return_dict_in_generate=True,
        output_logits=True,
        **inputs,
    )
    return found.sequences, torch.stack(found.logits, 1).float()


def steps_against_forward(model: Any, use_cache: bool) -> float:
    """KL divergence of the steps of generate from one forward over the same tokens."""
    ids = token_ids(PROMPT)
    sequences, steps = generate(model, ids, STEPS if use_cache else 4, use_cache=use_cache)
    whole = logits(model, sequences)[:, ids.shape[1] - 1 : -1, : steps.shape[-1]]
    return divergence(whole, steps[..., : whole.shape[-1]])


def padded_against_alone(model: Any) -> float:
    """Largest KL divergence of the first step of a row in a left-padded batch from that of the row alone."""
    rows = [token_ids(PROMPT, 1), token_ids(PROMPT - 7, 2)]
    ids, mask = left_padded(rows, PADDING)
    _, both = generate(model, ids, 2, mask)
    alone = [generate(model, row, 1)[1] for row in rows]
    return max(divergence(alone[n], both[n : n + 1, :1]) for n in range(len(rows)))


def all_steps(model: Any) -> dict[str, float | str]:
    """KL divergences of generating in each way from a plain forward; the error where a way does not run."""
    ways: dict[str, Callable[[], float]] = {
        "cached": lambda: steps_against_forward(model, True),
        "cacheless": lambda: steps_against_forward(model, False),
        "padded": lambda: padded_against_alone(model),
    }
    found: dict[str, float | str] = {}
    for name, way in ways.items():
        try:
            found[name] = way()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {str(error).strip()[:200]}"
    return found
