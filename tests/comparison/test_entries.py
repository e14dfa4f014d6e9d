from pathlib import Path

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.comparison.entries import Entry, calibrations, read_entries
from nestquant_cli.pipeline.recipe import Recipe

W4 = {"weight_bits": 4, "act_bits": 16, "kv_bits": 16}
INTEGERS = {"method": "integer"}


def groups(**recipes: Recipe) -> list[set[str]]:
    found = calibrations([Entry(name, recipe) for name, recipe in recipes.items()])
    for recipe, members in found:
        for part in ("act", "kv", "value"):
            assert all(member.recipe.shape(part) in (None, recipe.shape(part)) for member in members)
    return [{member.name for member in members} for _, members in found]


def test_what_needs_the_same_statistics_shares_them() -> None:
    found = groups(
        w4=Recipe(**W4),
        rtn=Recipe(**W4, **INTEGERS),
        all=Recipe(),
        acts=Recipe(act_bits=4, kv_bits=16, weight_bits=3),
        other=Recipe(act_bits=3),
        quarot=Recipe(**INTEGERS),
        bare=Recipe(**W4, rotation="none"),
        seed=Recipe(**W4, seed=1),
        fewer=Recipe(**W4, samples=4),
        learned=Recipe(**W4, rotation="learned"),
        learned2=Recipe(**W4, rotation="learned"),
        uncentered=Recipe(centering=False),
        sequential=Recipe(**W4, sequential=True),
        sequential2=Recipe(**W4, sequential=True),
        plain=Recipe(**W4, centering=False),
    )
    assert found[0] == {"w4", "rtn", "all", "acts", "plain"}
    assert [len(group) for group in found[1:]] == [1] * (len(found) - 1) == [1] * 10


def test_keys_and_activations_of_two_recipes_are_measured_together() -> None:
    assert groups(a=Recipe(kv_bits=16), b=Recipe(act_bits=16), c=Recipe()) == [{"a", "b", "c"}]


def test_a_method_of_activations_goes_with_them() -> None:
    assert groups(a=Recipe(act_bits=16), b=Recipe(kv_bits=16, act_method="integer")) == [{"a", "b"}]
    assert groups(a=Recipe(), b=Recipe(act_method="integer")) == [{"a"}, {"b"}]


def test_bits_of_values_go_with_those_of_keys() -> None:
    assert groups(a=Recipe(), b=Recipe(value_bits=5)) == [{"a"}, {"b"}]
    assert groups(a=Recipe(kv_bits=16), b=Recipe(value_bits=5), c=Recipe(value_bits=5)) == [{"a", "b", "c"}]


def test_factors_of_keys_go_with_their_bits() -> None:
    assert groups(a=Recipe(), b=Recipe(key_scales=True)) == [{"a"}, {"b"}]
    assert groups(a=Recipe(kv_bits=16), b=Recipe(key_scales=True), c=Recipe(key_scales=True)) == [{"a", "b", "c"}]


def test_mixed_rates_of_inputs_have_a_calibration_of_their_own() -> None:
    mixed = Recipe(act_allocation="mixed")
    assert groups(a=Recipe(), b=mixed, c=mixed, d=Recipe(allocation="mixed")) == [{"a", "d"}, {"b"}, {"c"}]


def test_names_are_those_of_the_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "w4.yaml").write_text("weight_bits: 4\n")
    (entry,) = read_entries([tmp_path / "a" / "w4.yaml"], {"samples": 3})
    assert (entry.name, entry.recipe.samples) == ("w4", 3)
    with pytest.raises(NestQuantError, match="two rows would be named 'w4'"):
        read_entries([tmp_path / "a" / "w4.yaml", tmp_path / "b" / "w4.yaml"], {})
    with pytest.raises(NestQuantError, match="names no file"):
        read_entries([], {})
