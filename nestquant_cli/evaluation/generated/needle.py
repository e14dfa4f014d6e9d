"""Items of the task `needle`: a fact to find in a long text, among others of its kind."""

import random
from collections.abc import Callable
from typing import Any

from ...base.errors import NestQuantError
from ..gates import NOT_EVALUATED
from .words import CITIES, COLORS, NAMES, PLACES, THINGS, TIMES, VERBS, pick, pick_several, whole

ITEMS = 100
FACTS = 8  # of one kind in a text, one of which is asked for
QUESTION = "\n\nQuestion: What is the secret number of {city}?\nAnswer:"
BEGINNING = "The secret number of {city} is"  # of the answer, which the model continues

_GOLDEN = 0.6180339887498949  # multiples of it, without their whole part, cover 0 to 1 evenly from the first few on


def needle_items(
    count_tokens: Callable[[str], int], tokens: int, depth: float | None, seed: int
) -> list[dict[str, Any]]:
    """Texts of sentences such as "At noon Anna went to the park and sold the red lamps", with facts in between.

    Args:
        count_tokens: number of tokens of a text.
        tokens: most tokens of a prompt, the question and the beginning of the answer included; prompts have at most
            one sentence less.
        depth: place of the fact in the text, from 0 for its beginning to 1 for its end; None for places that cover the
            text evenly, for any number of items from the first on.
        seed: seed of all that is random.

    Returns:
        `ITEMS` items with "text", "city", "answer" (four digits), "depth" and "tokens" (of the prompt).

    Raises:
        NestQuantError: the facts and the question alone have more tokens.
    """
    depths = [(0.5 + number * _GOLDEN) % 1 if depth is None else depth for number in range(ITEMS)]
    return [_item(random.Random(f"{seed} {number}"), count_tokens, tokens, each) for number, each in enumerate(depths)]


def _item(numbers: random.Random, count_tokens: Callable[[str], int], tokens: int, depth: float) -> dict[str, Any]:
    cities = pick_several(numbers, CITIES, FACTS)
    answers = [str(whole(numbers, 1000, 9999)) for _ in cities]
    places = [depth, *(numbers.random() for _ in cities[1:])]
    item = {"city": cities[0], "answer": answers[0], "depth": round(depth, 3)}
    facts = [f"{BEGINNING.format(city=city)} {answer}." for city, answer in zip(cities, answers, strict=True)]
    sentences: list[str] = []

    def text(size: int) -> str:
        """The text of `size` sentences and the facts."""
        while len(sentences) < size:
            sentences.append(_sentence(numbers))
        return " ".join(_with_facts(sentences[:size], facts, places))

    def count(size: int) -> int:
        return count_tokens(f"{text(size)}{QUESTION.format_map(item)} {BEGINNING.format_map(item)}")

    if count(0) > tokens:
        raise NestQuantError(
            f"--needle-tokens {tokens} has no room for the facts and the question of the task needle",
            NOT_EVALUATED,
            f"use {count(0) + 100} or more",
        )
    size = _largest(lambda size: count(size) <= tokens)
    return item | {"text": text(size), "tokens": count(size)}


def _with_facts(sentences: list[str], facts: list[str], places: list[float]) -> list[str]:
    mixed = list(sentences)
    for place, fact in sorted(zip(places, facts, strict=True), reverse=True):
        mixed.insert(round(place * len(sentences)), fact)
    return mixed


def _sentence(numbers: random.Random) -> str:
    who = f"{pick(numbers, TIMES)} {pick(numbers, NAMES)} went to the {pick(numbers, PLACES)}"
    return f"{who} and {pick(numbers, VERBS)} the {pick(numbers, COLORS)} {pick(numbers, THINGS)}."


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, where 0 does and all below the largest do."""
    high = 1
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
