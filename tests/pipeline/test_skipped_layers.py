import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.pipeline.skipped_layers import skipped_layers


def test_numbers_count_from_both_ends() -> None:
    assert skipped_layers(None, 4) == frozenset()
    assert skipped_layers("0, 2,-1,-4", 4) == {0, 2, 3}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("first", "is no list of layers"),
        ("0,,1", "is no list of layers"),
        ("4", "names layer 4, the model has 4 layers"),
        ("-5", "names layer -5"),
        ("0,1,2,3", "names every layer"),
    ],
)
def test_others_are_refused(text: str, told: str) -> None:
    with pytest.raises(NestQuantError, match=told):
        skipped_layers(text, 4)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kv_skip_layers": "a"}, "is no list of layers"),
        ({"kv_skip_layers": ""}, "kv_skip_layers is not a name"),
        ({"kv_skip_layers": "0", "kv_bits": 16}, "fewer than 16 bits"),
        ({"kv_bits": 16, "key_bits": 4}, "coded both or not at all"),
        ({"value_bits": 16}, "coded both or not at all"),
        ({"value_bits": 9}, "value_bits|out of range"),
        ({"key_bits": True}, "key_bits True is not a number"),
        ({"kv_code": {"q": 14, "k": 4}, "key_bits": 5}, "the code of keys and of values"),
        ({"method": "glvq", "act_bits": 16, "kv_bits": 16, "key_bits": 4, "value_bits": 4}, "glvq"),
    ],
)
def test_recipes_that_cannot_be_meant(settings: dict[str, object], told: str) -> None:
    with pytest.raises(NestQuantError, match=told):
        Recipe(**settings)  # type: ignore[arg-type]


def test_bits_of_keys_and_values() -> None:
    recipe = Recipe(key_bits=5, weight_bits=16, act_bits=16)
    assert (recipe.tag(), recipe.bits("kv"), recipe.bits("value")) == ("k5v4", 4.5, 4)
    assert Recipe(key_bits=5, value_bits=5).tag() == "w4a4kv5"
    assert Recipe(**recipe.to_dict()) == recipe
