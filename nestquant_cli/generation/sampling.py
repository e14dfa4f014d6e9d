"""How tokens are chosen: the user's settings, and the model's own generation settings for the rest."""

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..base.errors import NestQuantError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

NOT_GENERATED = "no text was generated"


@dataclass(frozen=True)
class Sampling:
    """Number of tokens, and how they are chosen. None leaves a setting to the model.

    Attributes:
        max_new_tokens: largest number of tokens to generate.
        temperature: 0 always takes the most likely token; above 0 the logits are divided by it and a token is sampled.
        top_p: sample from the smallest set of most likely tokens whose probabilities add up to this value, in (0, 1].
        top_k: sample from this many of the most likely tokens.
        seed: seed of the sampling.

    Raises:
        NestQuantError: a setting is out of range, or temperature 0 comes with top_p or top_k.
    """

    max_new_tokens: int = 128
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _refuse(self.max_new_tokens < 1, f"--max-new-tokens {self.max_new_tokens} is below 1", "use 1 or more")
        t, p, k = self.temperature, self.top_p, self.top_k
        _refuse(
            t is not None and not (math.isfinite(t) and t >= 0),
            f"--temperature {t} is not a number from 0",
            "use 0, or a number such as 0.7",
        )
        _refuse(
            p is not None and not 0 < p <= 1,
            f"--top-p {p} is not a probability above 0 and up to 1",
            "use a probability such as 0.9",
        )
        _refuse(k is not None and k < 1, f"--top-k {k} is below 1", "use a number of tokens such as 50")
        _refuse(
            t == 0 and (p is not None or k is not None),
            "--temperature 0 takes the most likely token, and --top-p and --top-k are for sampling",
            "leave one of them out",
        )

    def config(self, model: "PreTrainedModel", end_token: int | None) -> "GenerationConfig":
        """A copy of the model's generation settings, with these settings in it, for one sequence.

        Args:
            model: the model; its own settings are not changed.
            end_token: id of the tokenizer's end token. It ends the text, as the model's own end tokens do.
        """
        config: Any = copy.deepcopy(model.generation_config)
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        given = {name: value for name, value in sampling.items() if value is not None}
        if self.temperature == 0:
            config.do_sample = False
        elif given:
            config.do_sample = True
            for name, value in given.items():
                setattr(config, name, value)
        if not config.do_sample:
            for name in sampling:
                setattr(config, name, None)
        config.max_new_tokens, config.max_length, config.num_beams = self.max_new_tokens, None, 1
        config.use_cache = True  # some fine-tuned models have False, which makes each token recompute the whole text
        ends = config.eos_token_id
        ends = list(ends) if isinstance(ends, (list, tuple)) else [] if ends is None else [ends]
        config.eos_token_id = list(dict.fromkeys([*ends, *([] if end_token is None else [end_token])])) or None
        if config.pad_token_id is None and config.eos_token_id:
            config.pad_token_id = config.eos_token_id[0]
        return config


def described(config: "GenerationConfig") -> str:
    """In words: "the most likely token each time", or temperature, top-p and top-k of the sampling."""
    if not config.do_sample:
        return "the most likely token each time"
    parts = [f"temperature {config.temperature if config.temperature is not None else 1:g}"]
    parts += [f"top-p {config.top_p:g}"] if config.top_p is not None and config.top_p < 1 else []
    parts += [f"top-k {config.top_k}"] if config.top_k else []
    return "drawn with " + ", ".join(parts)


def _refuse(wrong: bool, cause: str, remedy: str) -> None:
    if wrong:
        raise NestQuantError(cause, NOT_GENERATED, remedy)
