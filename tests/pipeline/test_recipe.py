from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.codecs.integer.code import IntegerCode
from nestquant_cli.e8.shape import CodeShape, shape_for_bits
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.pipeline.recipe_file import read_recipe

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TAGS = {
    **{f"glvq-d{d}-w{bits}": f"w{bits}" for d in (8, 32) for bits in (2, 3, 4)},
    **dict.fromkeys(("w2", "gptq-w2-g64", "rtn-w2"), "w2"),
    "rtn-w3": "w3",
    "w4a4kv4": "w4a4kv4",
    "w4a8kv4": "w4a8kv4",
    "w4a16kv4": "w4kv4",
    "w4": "w4",
    "w3": "w3",
    "rtn-w4": "w4",
    "gptq-w4-g64": "w4",
    "gptq-w3-g64": "w3",
    "quarot-w4a4kv4": "w4a4kv4",
    "spinquant-w4a4kv4": "w4a4kv4",
}


def yaml(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_default_is_four_bits_for_all() -> None:
    recipe = Recipe()
    assert recipe.tag() == "w4a4kv4"
    assert {part: recipe.shape(part) for part in ("weight", "act", "kv")} == dict.fromkeys(
        ("weight", "act", "kv"), shape_for_bits(4)
    )
    assert Recipe(**recipe.to_dict()) == recipe


@pytest.mark.parametrize("eighths", range(16, 65))
def test_bits_in_eighths(eighths: int) -> None:
    recipe = Recipe(weight_bits=eighths / 8, act_bits=16, kv_bits=16)
    assert recipe.bits("weight") == eighths / 8 and recipe.bits("act") == 16
    assert recipe.tag() == f"w{eighths / 8:g}"


@pytest.mark.parametrize("part", ["weight", "act", "kv"])
@pytest.mark.parametrize("bits", [4.3, 1.875, 8.125, 0, -4, 15, 17, float("nan"), float("inf"), "4", True, None])
def test_other_bits_are_refused(part: str, bits: Any) -> None:
    with pytest.raises(NestQuantError, match=r"bits .*(out of range|multiple of 1/8|not a number)"):
        Recipe(**{f"{part}_bits": bits})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"weight_bits": 16, "act_bits": 16, "kv_bits": 16.0}, "all left at 16 bits"),
        ({"method": "magic"}, "no method 'magic'"),
        ({"samples": 0}, "samples 0 is not an integer"),
        ({"samples": 1.5}, "samples 1.5 is not an integer"),
        ({"seqlen": 1}, "seqlen 1 is not an integer"),
        ({"seed": -1}, "seed -1 is not an integer"),
        ({"damping": 0}, "damping 0 is not in"),
        ({"damping": float("nan")}, "damping nan is not in"),
        ({"dataset": ""}, "dataset is not a name"),
        ({"weight_code": {"q": 14}}, "weight_code .* is not of the form"),
        ({"weight_code": {"q": 14, "k": 4.0}}, "weight_code .* is not of the form"),
        ({"weight_code": {"q": 300, "k": 4}}, "q and k .* 2 to 256 and 1 to 255"),
        ({"weight_code": {"q": 2, "k": 10**9}}, "q and k .* 2 to 256 and 1 to 255"),
        ({"weight_code": {"q": 250, "k": 9}}, "1 to 64 bits"),
        ({"rotation": "magic"}, "no rotation 'magic'"),
        ({"feedback": True}, "no feedback 'True'"),
        ({"qa": 1}, "qa 1 is not true or false"),
        ({"reflections": 0}, "reflections 0 is not an integer"),
        ({"method": "integer", "weight_bits": 3.5}, "3.5 of an integer code are not a whole number"),
        ({"method": "integer", "act_bits": 9}, "bits 9 of an integer code"),
        ({"method": "integer", "kv_code": {"q": 14, "k": 4}}, "kv_code has an unknown setting 'q'"),
        ({"method": "integer", "kv_code": {"grup": 64}}, "did you mean 'group'"),
        ({"method": "glvq", "act_bits": 16, "kv_bits": 16, "weight_code": {"dimensions": 8}}, "mean 'dimension'"),
        ({"weight_code": {"q": 14, "K": 4}}, "unknown setting 'K'.*did you mean 'k'"),
        ({"tune": {"step": 4}}, "did you mean 'steps'"),
        ({"method": "integers"}, "did you mean 'integer'"),
        ({"act_method": "integers"}, "no act_method 'integers'.*did you mean 'integer'"),
        ({"act_method": "glvq"}, "no act_method 'glvq'"),
        ({"act_method": 8}, "no act_method '8'"),
        ({"act_method": "integer", "act_bits": 3.5}, "3.5 of an integer code are not a whole number"),
        ({"act_method": "integer", "act_code": {"q": 14, "k": 4}}, "act_code has an unknown setting 'q'"),
        ({"act_method": "nestquant", "act_code": {"clip": 0.9}}, "act_code has an unknown setting 'clip'"),
        ({"method": "integer", "kv_code": {"group": 12}}, "group 12 is not a multiple of 8"),
        ({"method": "integer", "kv_code": {"clip": 1.5}}, "clip 1.5 is not in"),
        ({"method": "integer", "kv_code": {"symmetric": 1}}, "symmetric is 1, not true or false"),
    ],
)
def test_unusable_settings_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(NestQuantError, match=told):
        Recipe(**settings)


@pytest.mark.parametrize("paths", [0, 65, -1, 2.0, True, "8"])
def test_other_paths_are_refused(paths: Any) -> None:
    with pytest.raises(NestQuantError, match="is not an integer from 1 to 64"):
        Recipe(paths=paths)


@pytest.mark.parametrize("settings", [{"method": "integer"}, {"feedback": "none"}])
def test_a_search_needs_feedback_and_a_lattice(settings: dict[str, Any]) -> None:
    with pytest.raises(NestQuantError, match="needs feedback"):
        Recipe(paths=2, **settings)
    assert Recipe(paths=1, **settings).search_paths == Recipe(**settings).search_paths == 1


def test_weights_alone_are_searched() -> None:
    alone: dict[str, Any] = {"act_bits": 16, "kv_bits": 16}
    assert Recipe().search_paths == 1 and Recipe(paths=4).search_paths == 4
    assert Recipe(**alone).search_paths == 8 and Recipe(act_bits=16).search_paths == 8
    assert Recipe(method="glvq", **alone).search_paths == 16
    assert Recipe(feedback="none", **alone).search_paths == 1


@pytest.mark.parametrize("preset", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_recipes(preset: Path) -> None:
    recipe = read_recipe(preset, {})
    if preset.stem in TAGS:
        assert recipe.tag() == TAGS[preset.stem]
    else:
        shape = recipe.shape("weight")
        assert isinstance(shape, CodeShape) and (shape.q, shape.k) == (14, 4)  # the paper's


def test_integers_by_name_and_bits() -> None:
    recipe = Recipe(method="integer", weight_code={"group": 64, "clip": "mse"}, act_bits=16, kv_bits=8)
    assert recipe.shape("weight") == IntegerCode(4, True, 64, None) and recipe.shape("kv") == IntegerCode(8)
    assert (recipe.tag(), recipe.bits("weight")) == ("w4kv8", 4)


def test_activations_of_eight_bits_are_integers_unless_told_otherwise() -> None:
    assert Recipe(act_bits=8).shape("act") == IntegerCode(8)
    assert Recipe(act_bits=8).shape("weight") == Recipe(act_bits=8).shape("kv") == shape_for_bits(4)
    assert Recipe(act_bits=8, act_code={"clip": 0.9}).shape("act") == IntegerCode(8, clip=0.9)
    assert Recipe(act_bits=8, act_method="nestquant").shape("act") == shape_for_bits(8)
    assert isinstance(Recipe(act_bits=8, act_code={"q": 14, "k": 4}).shape("act"), CodeShape)
    assert Recipe(method="glvq", act_bits=8, kv_bits=16).shape("act") == IntegerCode(8)
    assert Recipe(act_bits=7.875).shape("act") == shape_for_bits(7.875)
    assert Recipe(act_method="integer").shape("act") == IntegerCode(4)
    assert Recipe(method="integer", act_method="nestquant", act_bits=4.5).shape("act") == shape_for_bits(4.5)


def test_a_method_of_activations_is_recorded_where_it_was_given() -> None:
    assert "act_method" not in Recipe(act_bits=8).to_dict()
    assert Recipe(act_method="integer").to_dict()["act_method"] == "integer"
