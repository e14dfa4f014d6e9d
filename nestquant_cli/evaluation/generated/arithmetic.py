"""Items of the task `arithmetic_steps`: a number after a few steps, with four answers to choose from."""

import random
from itertools import count, islice
from typing import Any

from .words import NAMES, THINGS, pick, pick_several, whole

ITEMS, SOLVED = 500, 50
STEPS = 2
SHOTS = 5  # solved items in a prompt, unless told otherwise


def arithmetic_items(seed: int) -> list[dict[str, Any]]:
    """`ITEMS` items with "question", "choices" (four numbers as text) and "gold", the place of the right one.

    Args:
        seed: seed of all that is random.
    """
    return [_item(random.Random(f"{seed} item {number}")) for number in range(ITEMS)]


def solved_items(seed: int) -> list[dict[str, Any]]:
    """`SOLVED` other items of the same form, for the examples in the prompts."""
    asked = {item["question"] for item in arithmetic_items(seed)}
    items = (_item(random.Random(f"{seed} example {number}")) for number in count())
    return list(islice((item for item in items if item["question"] not in asked), SOLVED))


def _item(numbers: random.Random) -> dict[str, Any]:
    name, things = pick(numbers, NAMES), pick(numbers, THINGS)
    values = [whole(numbers, 3, 12)]
    told = [f"{name} has {values[0]} {things}."]
    for _ in range(STEPS):
        gets = values[-1] < 5 or numbers.random() < 0.5
        change = whole(numbers, 2, 9 if gets else min(9, values[-1] - 1))
        values.append(values[-1] + (change if gets else -change))
        told.append(f"{name} {'gets' if gets else 'loses'} {change} {things}.")
    value = values[-1]
    choices = pick_several(numbers, [value, *_wrong(numbers, values)], 4)
    question = f"{' '.join(told)} Now {name} has"
    return {"question": question, "choices": [str(choice) for choice in choices], "gold": choices.index(value)}


def _wrong(numbers: random.Random, values: list[int]) -> list[int]:
    """Three wrong answers, 0 to 3 of them below the right one: first those that leave out a step, then neighbors."""
    value = values[-1]
    without_a_step = values[-2], values[-3] + value - values[-2]
    found = list(dict.fromkeys([*without_a_step, *(value + distance for distance in (1, -1, 2, -2, 3, -3))]))
    below = [number for number in found if 0 <= number < value]
    above = [number for number in found if number > value]
    fewer = min(whole(numbers, 0, 3), len(below))
    return below[:fewer] + above[: 3 - fewer]
