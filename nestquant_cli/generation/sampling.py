"""How tokens are chosen: what the model's own generation settings say, where the user does not say otherwise."""

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
    """How many tokens, and how they are chosen; None leaves a setting to the model.

    Attributes:
        max_new_tokens: the most that are generated.
        temperature: 0 always takes the most likely token; above 0 the logits are divided by it and a token is drawn.
        top_p: draw from the most likely tokens that have this probability together.
        top_k: draw from so many of the most likely tokens.
        seed: seed of the drawing.

    Raises:
        NestQuantError: a setting is out of range, or the most likely token is asked for together with a way of drawing.
    """

    max_new_tokens: int = 128
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _refuse(self.max_new_tokens < 1, f"--max-new-tokens {self.max_new_tokens}", "use 1 or more")
        t, p, k = self.temperature, self.top_p, self.top_k
        _refuse(t is not None and not (math.isfinite(t) and t >= 0), f"--temperature {t}", "use 0, 0.7 or so")
        _refuse(p is not None and not 0 < p <= 1, f"--top-p {p}", "use a probability such as 0.9")
        _refuse(k is not None and k < 1, f"--top-k {k}", "use a number of tokens such as 50")
        _refuse(
            t == 0 and (p is not None or k is not None),
            "--temperature 0 takes the most likely token, and --top-p or --top-k would draw one",
            "leave one of them out",
        )

    def config(self, model: "PreTrainedModel", end_token: int | None) -> "GenerationConfig":
        """The model's generation settings with these in their place, for one sequence.

        Args:
            model: whose settings are not changed.
            end_token: the tokenizer's end token; it ends the text, as do the tokens that the model names.
        """
        config: Any = copy.deepcopy(model.generation_config)
        drawing = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        given = {name: value for name, value in drawing.items() if value is not None}
        if self.temperature == 0:
            config.do_sample = False
        elif given:
            config.do_sample = True
            for name, value in given.items():
                setattr(config, name, value)
        if not config.do_sample:
            for name in drawing:
                setattr(config, name, None)
        config.max_new_tokens, config.max_length, config.num_beams = self.max_new_tokens, None, 1
        config.use_cache = True  # fine-tuned models often say False, which only makes each token dearer
        ends = config.eos_token_id
        ends = list(ends) if isinstance(ends, (list, tuple)) else [] if ends is None else [ends]
        config.eos_token_id = list(dict.fromkeys([*ends, *([] if end_token is None else [end_token])])) or None
        if config.pad_token_id is None and config.eos_token_id:
            config.pad_token_id = config.eos_token_id[0]
        return config


def described(config: "GenerationConfig") -> str:
    """In words: "the most likely token", or how one is drawn."""
    if not config.do_sample:
        return "the most likely token each time"
    parts = [f"temperature {config.temperature if config.temperature is not None else 1:g}"]
    parts += [f"top-p {config.top_p:g}"] if config.top_p is not None and config.top_p < 1 else []
    parts += [f"top-k {config.top_k}"] if config.top_k else []
    return "drawn with " + ", ".join(parts)


def _refuse(wrong: bool, cause: str, remedy: str) -> None:
    if wrong:
        raise NestQuantError(cause, NOT_GENERATED, remedy)
