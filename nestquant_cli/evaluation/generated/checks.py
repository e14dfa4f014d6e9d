"""What the generated tasks are made from, checked before a model is loaded."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...base.errors import NestQuantError
from ...models.source import Source, load_config
from ..gates import NOT_EVALUATED
from .definitions import ANSWER_TOKENS, NEEDLE, Making

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def checked_making(
    tasks: Sequence[str],
    source: Source,
    tokenizer: "PreTrainedTokenizerBase",
    seed: int,
    needle_tokens: int | None = None,
    needle_depth: float | None = None,
) -> Making:
    """What generated tasks are made from.

    Args:
        tasks: names of all tasks that are asked for.
        source: the model.
        tokenizer: its tokenizer.
        seed: seed of all that is random.
        needle_tokens: tokens of a prompt of `needle`; None is the default.
        needle_depth: place of its fact, from 0 to 1; None for places that cover the text evenly.

    Raises:
        NestQuantError: a setting of `needle` without this task, out of range, or prompts that are longer than the
            model's context: lm-eval would cut them, and the fact with them.
    """
    for option, value in (("--needle-tokens", needle_tokens), ("--needle-depth", needle_depth)):
        if value is not None and NEEDLE not in tasks:
            raise NestQuantError(f"{option} is given, but {NEEDLE} is not in --tasks", NOT_EVALUATED, "leave it out")
    if needle_depth is not None and not (math.isfinite(needle_depth) and 0 <= needle_depth <= 1):
        raise NestQuantError(
            f"--needle-depth {needle_depth:g} is not a place in a text", NOT_EVALUATED, "use a number from 0 to 1"
        )
    making = Making(tokenizer, seed, Making.needle_tokens if needle_tokens is None else needle_tokens, needle_depth)
    if NEEDLE in tasks:
        _refuse_long(source, making.needle_tokens)
    return making


def _refuse_long(source: Source, tokens: int) -> None:
    context = getattr(load_config(source).get_text_config(), "max_position_embeddings", None)
    if context and tokens + ANSWER_TOKENS > context:
        raise NestQuantError(
            f"prompts of {tokens} tokens, and {ANSWER_TOKENS} of answers, exceed the model's context of {context}",
            NOT_EVALUATED,
            f"use --needle-tokens {context - ANSWER_TOKENS} or less",
        )
