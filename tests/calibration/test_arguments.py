from collections import UserDict
from types import SimpleNamespace
from typing import Any

import torch

from nestquant_cli.calibration.arguments import differing, leaves, memory_of, same, tree_of, value_of
from tests.families import gaussian


def test_a_tree_is_what_a_value_was() -> None:
    bag: UserDict[str, Any] = UserDict(one=(gaussian(2), None))
    value = ([1, {"a": 2}], bag)
    tree = tree_of(value)
    bag["two"] = 3
    assert dict(leaves(tree)).keys() == {(0, 0), (0, 1, "a"), (1, "one", 0), (1, "one", 1)}
    made = value_of(tree, lambda _, leaf: leaf)
    assert made[0] == value[0] and made[0] is not value[0]
    assert type(made[1]) is UserDict and made[1].keys() == {"one"} and bag.keys() == {"one", "two"}


def test_differing_leaves_have_a_path() -> None:
    def between(one: Any, other: Any) -> list[Any]:
        return list(differing(tree_of(one), tree_of(other), same))

    x = gaussian(3)
    assert between((x, [1, None]), (x.clone(), [1, None])) == []
    assert between((x, [1, None]), (x + 1, [2, None])) == [(0,), (1, 0)]
    assert between((x, [1, None]), (x, [1])) == [(1,)]
    assert between({"a": None}, {"a": x}) == [("a",)]


def test_objects_are_compared_by_what_they_hold() -> None:
    one, other = SimpleNamespace(x=[gaussian(3)], n=1), SimpleNamespace(x=[gaussian(3)], n=1)
    assert same(one, other)
    other.x[0] = other.x[0] + 1
    assert not same(one, other) and not same(object(), object())


def test_memory_tells_views_of_the_same_numbers() -> None:
    x = torch.zeros(2, 3)
    assert memory_of(x[:, 0:]) == memory_of(x) != memory_of(x[:, 1:])
    assert memory_of(x[:0]) != memory_of(torch.zeros(0, 3))
