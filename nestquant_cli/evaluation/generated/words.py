"""Words of the generated tasks, and picks of them that are the same in every version of Python."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Anna Ben Carla David Emma Felix Grace Henry Irene Jack Kate Leo Mary Noah Olivia Peter Rosa Sam Tina Victor"
)
CITIES = _words(
    "Athens Berlin Boston Cairo Chicago Dallas Delhi Dublin Florence Geneva Houston Kyoto Lima Lisbon London Madrid "
    "Miami Milan Moscow Oslo Paris Prague Rome Seattle Seoul Sydney Tokyo Toronto Vienna Warsaw"
)
PLACES = _words(
    "market library station garden museum school harbor bakery theater bridge park hotel farm church office beach "
    "village river forest castle"
)
THINGS = _words(
    "apples books lamps boxes chairs flowers candles plates shirts letters stones bottles tickets baskets pictures "
    "bells coins hats maps pens"
)
COLORS = _words("red blue green white black yellow brown gray pink purple")
VERBS = _words("bought sold found lost painted carried counted washed hid brought")
TIMES = (
    "In the morning",
    "At noon",
    "In the evening",
    "On Monday",
    "On Friday",
    "Last week",
    "After lunch",
    "At night",
)


def pick(numbers: random.Random, items: Sequence[T]) -> T:
    """One of the items. `random()` is the only method of Random whose numbers Python promises to keep."""
    return items[whole(numbers, 0, len(items) - 1)]


def whole(numbers: random.Random, lowest: int, highest: int) -> int:
    """A whole number from `lowest` to `highest`, both included."""
    return lowest + int(numbers.random() * (highest - lowest + 1))


def pick_several(numbers: random.Random, items: Sequence[T], count: int) -> list[T]:
    """`count` different ones of the items, in random order."""
    left = list(items)
    return [left.pop(whole(numbers, 0, len(left) - 1)) for _ in range(count)]
