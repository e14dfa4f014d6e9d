"""Bits by equal slopes: the average is kept, and no exchange of bits between two matrices would do better."""

import itertools
import math

import pytest

from nestquant_cli.e8.rates import BEST
from nestquant_cli.quantization.allocation import INPUTS, REACH, Sensitivity, allocate
from tests.families import gaussian


def some(count: int) -> dict[str, Sensitivity]:
    costs = gaussian(count).mul(2).exp().tolist()
    return {str(number): Sensitivity(64 * (1 + number % 5), cost) for number, cost in enumerate(costs)}


def total(found: dict[str, Sensitivity], words: dict[str, int]) -> tuple[float, int]:
    loss = math.fsum(item.loss(words[name]) for name, item in found.items())
    return loss, sum(item.weights * words[name] for name, item in found.items())


@pytest.mark.parametrize("average", [18, 28, 32, 44])
def test_the_average_is_kept_and_beats_uniform_bits(average: int) -> None:
    found = some(200)
    words = allocate(found, average)
    loss, spent = total(found, words)
    weights = sum(item.weights for item in found.values())
    assert 0 <= average - spent / weights < 0.05
    assert loss < 0.9 * total(found, dict.fromkeys(found, average))[0]
    assert set(words.values()) <= set(BEST) and all(abs(bits - average) <= REACH for bits in words.values())
    if average <= 34:
        assert max(words.values()) <= 34


def test_the_best_of_all_for_a_few() -> None:
    found = {name: Sensitivity(64, cost) for name, cost in (("a", 1.0), ("b", 0.1), ("c", 10.0))}
    words = allocate(found, 28)
    assert words["c"] > words["a"] > words["b"]
    choices = itertools.product(range(16, 35), repeat=3)
    best = min(total(found, dict(zip(found, bits, strict=True)))[0] for bits in choices if sum(bits) <= 3 * 28)
    assert total(found, words)[0] < 1.05 * best


@pytest.mark.parametrize("average", [24, 32, 34])
def test_inputs_take_what_has_int8_products(average: int) -> None:
    found = some(200)
    words = allocate(found, average, errors=INPUTS)
    spent = sum(item.weights * words[name] for name, item in found.items())
    assert 0 <= average - spent / sum(item.weights for item in found.values()) < 0.2
    assert set(words.values()) <= set(INPUTS) and min(words.values()) >= average - REACH
    costliest = max(found, key=lambda name: found[name].cost / found[name].weights)
    assert words[costliest] == max(words.values()) > 34
    mixed, uniform = (
        math.fsum(item.loss(each[name], INPUTS) for name, item in found.items())
        for each in (words, dict.fromkeys(found, average))
    )
    assert mixed < 0.8 * uniform


def test_tied_matrices_get_equal_bits_within_the_average() -> None:
    plain = some(60)
    found = {
        name: Sensitivity(item.weights, item.cost, None if number % 4 == 3 else str(number // 4 * 4))
        for number, (name, item) in enumerate(plain.items())
    }
    words = allocate(found, 28, tied=True)
    groups = [{words[str(first + other)] for other in range(3)} for first in range(0, 60, 4)]
    assert all(len(bits) == 1 for bits in groups) and len(set().union(*groups)) > 2
    assert list(words) == list(found)
    loss, spent = total(found, words)
    weights = sum(item.weights for item in found.values())
    assert 0 <= 28 - spent / weights < 0.2
    apart, uniform = total(found, allocate(found, 28))[0], total(found, dict.fromkeys(found, 28))[0]
    assert apart < loss < 0.95 * uniform
    assert allocate(found, 28) == allocate(plain, 28)  # nothing is tied that is not asked for


def test_equal_matrices_get_equal_bits_where_the_ladder_has_them() -> None:
    assert set(allocate({name: Sensitivity(64, 1.0) for name in "abc"}, 28).values()) == {28}
    assert set(allocate({name: Sensitivity(64, 0.0) for name in "abc"}, 28).values()) <= set(range(16, 35))
