"""What the functions of the API are given: names of models, settings of a recipe, sizes."""

from pathlib import Path

import pytest
import torch

import nestquant_cli
from nestquant_cli.api.arguments import bytes_of, recipe_of, source_of
from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.pipeline.recipe import SIXTEEN, Recipe


def test_settings_win_over_a_file_and_bits_follow_its_rule(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text("bits: 3\nsamples: 4\n", encoding="utf-8")
    assert recipe_of(None, {"bits": None, "seed": None}, SIXTEEN) == (Recipe(), [])
    assert recipe_of(None, {"weight_bits": 4}, SIXTEEN)[0] == Recipe(weight_bits=4, act_bits=16, kv_bits=16)
    read, named = recipe_of(tmp_path / "w.yaml", {"kv_bits": 4, "samples": None}, SIXTEEN)
    assert (read, named) == (Recipe(weight_bits=3, act_bits=3, kv_bits=4, samples=4), ["kv_bits"])


def test_a_recipe_has_all_settings() -> None:
    assert recipe_of(Recipe(seed=3), {"bits": None}, SIXTEEN) == (Recipe(seed=3), [])
    with pytest.raises(NestQuantError, match=r"seed was given besides a Recipe.*Recipe\(seed=…\)"):
        recipe_of(Recipe(), {"bits": None, "seed": 0}, SIXTEEN)


def test_an_unknown_setting_is_refused_before_any_work() -> None:
    with pytest.raises(NestQuantError, match=r"unknown setting 'kv_bit'.*kv_bits"):
        nestquant_cli.quantize("no-such-folder/model", kv_bit=4)
    with pytest.raises(NestQuantError, match=r"unknown setting 'sample'.*samples"):
        nestquant_cli.calibrate("no-such-folder/model", sample=4)
    with pytest.raises(NestQuantError, match=r"unknown setting 'step'.*steps"):
        nestquant_cli.tune("no-such-folder", "no-such-model", step=4)


def test_what_is_no_name_of_a_model_is_refused(tiny_model_folder: Path) -> None:
    assert source_of(tiny_model_folder) == source_of(str(tiny_model_folder))
    for call in (nestquant_cli.quantize, nestquant_cli.load, nestquant_cli.evaluate):
        with pytest.raises(NestQuantError, match="a Linear was given as the model"):
            call(torch.nn.Linear(2, 2))  # type: ignore[operator]


def test_a_budget_is_a_number_or_a_size() -> None:
    assert bytes_of(5) == 5 and bytes_of("2GiB") == 2 << 30
    for size in ("much", -5, None):
        with pytest.raises(NestQuantError, match=f"memory_budget '{size}' is not a size"):
            bytes_of(size)  # type: ignore[arg-type]


def test_a_dtype_that_does_not_exist_is_refused_before_any_work() -> None:
    for call in (nestquant_cli.quantize, nestquant_cli.calibrate):
        with pytest.raises(NestQuantError, match="no dtype 'flaot32'"):
            call("no-such-folder/model", dtype="flaot32")
