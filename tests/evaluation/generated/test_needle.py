"""Texts of the task `needle` have their length, their fact at its place, and are the same everywhere."""

import hashlib
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.evaluation.generated.needle import BEGINNING, FACTS, ITEMS, QUESTION, needle_items


def words(text: str) -> int:
    """A tokenizer for which a word is a token."""
    return len(text.split())


def characters(text: str) -> int:
    return len(text) // 4


@settings(max_examples=10)
@given(st.integers(150, 900), st.one_of(st.none(), st.floats(0, 1)), st.integers(0, 5))
def test_prompts_are_as_long_as_they_can_be(tokens: int, depth: float | None, seed: int) -> None:
    for item in needle_items(words, tokens, depth, seed)[::10]:
        prompt = f"{item['text']}{QUESTION.format_map(item)} {BEGINNING.format_map(item)}"
        assert words(prompt) == item["tokens"]
        assert tokens - 14 < item["tokens"] <= tokens  # no sentence has more than 14 words


def test_each_text_tells_the_fact_once_at_its_depth() -> None:
    for item in needle_items(words, 2000, None, 0):
        fact = f"The secret number of {item['city']} is {item['answer']}."
        assert item["text"].count(item["city"]) == item["text"].count(fact) == 1
        assert item["text"].count("The secret number of ") == FACTS
        assert item["text"].index(fact) / len(item["text"]) == pytest.approx(item["depth"], abs=0.05)


@pytest.mark.parametrize("limit", [10, 25, ITEMS])
def test_the_first_items_cover_the_text_evenly(limit: int) -> None:
    depths = sorted(item["depth"] for item in needle_items(words, 200, None, 0)[:limit])
    gaps = [after - before for before, after in zip([0, *depths], [*depths, 1], strict=True)]
    assert max(gaps) < 2 / limit


@pytest.mark.parametrize(("depth", "place"), [(0.0, 0), (1.0, -1)])
def test_a_given_depth_holds_for_all(depth: float, place: int) -> None:
    for item in needle_items(words, 300, depth, 0)[:20]:
        assert item["text"].split(".")[:-1][place].strip().endswith(f"{item['city']} is {item['answer']}")


def test_items_depend_on_the_seed_and_facts_on_nothing_else() -> None:
    one, same, other = (
        needle_items(words, 300, None, 0),
        needle_items(words, 300, None, 0),
        needle_items(words, 300, None, 1),
    )
    assert one == same and [item["answer"] for item in one] != [item["answer"] for item in other]
    assert [item["answer"] for item in one] == [item["answer"] for item in needle_items(characters, 999, 0.5, 0)]


def test_items_stay_as_they_are() -> None:
    """A change of the items needs a new version of the task in `definitions`."""
    text = json.dumps(needle_items(words, 300, None, 0))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "a78cfe0c6df7ff45"


def test_a_length_without_room_is_refused_with_one_that_works() -> None:
    with pytest.raises(NestQuantError, match="--needle-tokens 50 has no room for the facts") as refused:
        needle_items(words, 50, None, 0)
    assert needle_items(words, int(re.findall(r"use (\d+) or more", str(refused.value))[0]), None, 0)
