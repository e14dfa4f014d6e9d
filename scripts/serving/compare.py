"""Compares a server's scores of texts with those of transformers and nestquant on the same checkpoint.

Greedy tokens are compared at each place of a given text. In texts that both write themselves, one other token would
make all that follow different.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WINDOWS, WINDOW = 6, 160  # texts, and tokens of each


@dataclass(frozen=True)
class Scores:
    """Of all tokens of some texts but the first of each.

    Attributes:
        logprobs: natural logarithm of the probability of each token.
        best: the likeliest token at each place.
    """

    logprobs: list[float]
    best: list[int]


@dataclass(frozen=True)
class Difference:
    """Between two scores of the same texts.

    Attributes:
        largest: of the absolute differences of log-probabilities, nats.
        mean: of the same.
        agreement: share of the places with the same likeliest token.
        places: how many there are.
    """

    largest: float
    mean: float
    agreement: float
    places: int

    def __str__(self) -> str:
        return (
            f"{self.places} places: largest difference {self.largest:.2g}, mean {self.mean:.2g}, "
            f"same greedy token at {self.agreement:.1%}"
        )


def difference(one: Scores, other: Scores) -> Difference:
    """Between two scores of the same texts."""
    apart = [abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True)]
    same = [a == b for a, b in zip(one.best, other.best, strict=True)]
    return Difference(max(apart), sum(apart) / len(apart), sum(same) / len(same), len(apart))


def texts(checkpoint: str) -> list[list[int]]:
    """Token ids of pieces of the text that comes with Python."""
    from nestquant_cli.calibration.text import load_text
    from nestquant_cli.calibration.windows import token_windows
    from nestquant_cli.models.source import load_tokenizer, resolve

    windows = token_windows(load_text("demo", "test"), load_tokenizer(resolve(checkpoint)), WINDOW)
    return [[int(token) for token in window] for window in windows[:WINDOWS]]


def of_server(client: Any, model: str, prompts: Sequence[Sequence[int]]) -> Scores:
    """Scores by the server, through its field prompt_logprobs."""
    answer = client.completions.create(
        model=model, prompt=list(prompts), max_tokens=1, temperature=0, extra_body={"prompt_logprobs": 1}
    )
    logprobs, best = [], []
    for choice in sorted(answer.choices, key=lambda choice: choice.index):
        for token, place in zip(prompts[choice.index][1:], choice.prompt_logprobs[1:], strict=True):
            logprobs.append(float(place[str(token)]["logprob"]))
            best.append(likeliest(place))
    return Scores(logprobs, best)


def likeliest(place: dict[str, dict[str, Any]]) -> int:
    """The token of rank 1 among those that the server names at one place."""
    return int(min(place, key=lambda token: (place[token]["rank"], -place[token]["logprob"])))


def of_transformers(checkpoint: str, prompts: Sequence[Sequence[int]], dtype: str, attention: str = "sdpa") -> Scores:
    """Scores by transformers and nestquant, each text alone."""
    import torch
    from transformers import AutoModelForCausalLM

    import nestquant_cli  # noqa: F401  (registers the format with transformers)

    kind = getattr(torch, dtype)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=kind, attn_implementation=attention).eval()
    logprobs: list[float] = []
    best: list[int] = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            found = model(input_ids=ids).logits[0, :-1].float().log_softmax(dim=-1)
        logprobs += found.gather(1, ids[0, 1:, None])[:, 0].tolist()
        best += found.argmax(dim=-1).tolist()
    return Scores(logprobs, best)
