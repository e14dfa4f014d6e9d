"""Items of `arithmetic_steps` have one right answer, which the question leads to."""

import hashlib
import json
import re
from collections import Counter

import pytest

from nestquant_cli.evaluation.generated.arithmetic import ITEMS, STEPS, arithmetic_items, solved_items


def result(question: str) -> int:
    """The number that a question such as "7 + 5 - 3 =" leads to."""
    assert re.fullmatch(rf"\d( [+-] \d){{{STEPS}}} =", question)
    return sum(int(number.replace(" ", "")) for number in re.findall(r"[+-]? ?\d", question))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_answer_is_right_and_the_others_are_not(seed: int) -> None:
    items = arithmetic_items(seed)
    assert len(items) == ITEMS
    for item in [*items, *solved_items(seed)]:
        assert item["choices"][item["gold"]] == str(result(item["question"]))
        assert len(set(item["choices"])) == 4 and all(int(choice) >= 0 for choice in item["choices"])


def test_no_place_of_the_answer_and_no_number_is_a_good_guess() -> None:
    items = arithmetic_items(0)
    places = Counter(item["gold"] for item in items)
    assert max(places.values()) < 0.32 * ITEMS
    ranks = Counter(sorted(map(int, item["choices"])).index(result(item["question"])) for item in items)
    assert max(ranks.values()) < 0.35 * ITEMS


def test_questions_differ_and_examples_are_not_among_them() -> None:
    questions = {item["question"] for item in arithmetic_items(0)}
    assert len(questions) == ITEMS
    assert not questions & {item["question"] for item in solved_items(0)}


def test_items_stay_as_they_are() -> None:
    """A change of the items needs a new version of the task in `definitions`."""
    text = json.dumps([arithmetic_items(0), solved_items(0)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "94d3303bc16c5482"
