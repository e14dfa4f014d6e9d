"""Items of the task `arithmetic_steps`: sums of a few steps, with four answers to choose from."""

import random
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

from .words import pick_several, whole

ITEMS, SOLVED = 500, 50
STEPS = 2
SHOTS = 8  # solved items in a prompt, unless told otherwise


def arithmetic_items(seed: int) -> list[dict[str, Any]]:
    """`ITEMS` items with "question", "choices" (four numbers as text) and "gold", the place of the right one.

    Args:
        seed: seed of all that is random.
    """
    return list(islice(_items(seed), ITEMS))


def solved_items(seed: int) -> list[dict[str, Any]]:
    """`SOLVED` other items of the same form, for the examples in the prompts."""
    return list(islice(_items(seed), ITEMS, ITEMS + SOLVED))


def _items(seed: int) -> Iterator[dict[str, Any]]:
    """Items with different questions, without an end."""
    asked: set[str] = set()
    for number in count():
        item = _item(random.Random(f"{seed} {number}"))
        if item["question"] not in asked:
            asked.add(item["question"])
            yield item


def _item(numbers: random.Random) -> dict[str, Any]:
    value = whole(numbers, 2, 9)
    question = str(value)
    for _ in range(STEPS):
        added = value < 4 or numbers.random() < 0.5
        change = whole(numbers, 1, 9 if added else min(9, value - 1))
        value += change if added else -change
        question += f" {'+' if added else '-'} {change}"
    choices = pick_several(numbers, [value, *_wrong(numbers, value)], 4)
    return {"question": f"{question} =", "choices": [str(choice) for choice in choices], "gold": choices.index(value)}


def _wrong(numbers: random.Random, value: int) -> list[int]:
    """Three wrong answers at most 9 away, 0 to 3 of them below the right one, so that its rank is no hint."""
    below, above = range(max(0, value - 9), value), range(value + 1, value + 10)
    fewer = min(whole(numbers, 0, 3), len(below))
    return pick_several(numbers, below, fewer) + pick_several(numbers, above, 3 - fewer)
