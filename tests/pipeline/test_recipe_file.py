"""A recipe is the same wherever its settings stand: in a file, on the command line, or some here and some there."""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.cli import config, main
from nestquant_cli.codecs.integer.code import IntegerCode
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.pipeline.recipe_file import BITS, SETTINGS, read_recipe, with_tuning

QUANTIZE: Any = typer.main.get_command(main.app).commands["quantize"]  # type: ignore[attr-defined]
OPTIONS = {each.name: each for each in QUANTIZE.params if each.param_type_name == "option"}


def from_command_line(words: list[str], file: Path | None = None) -> Recipe:
    """The recipe of `nestquant quantize MODEL --config file WORDS`."""
    context = QUANTIZE.make_context("quantize", ["MODEL", *([] if file is None else ["--config", str(file)]), *words])
    recipe = read_recipe(file, config.recipe_settings(context), config.options_from_file(context))
    return with_tuning(recipe, context.params["tune"])


def as_words(values: dict[str, Any]) -> list[str]:
    found = []
    for name, value in values.items():
        option = OPTIONS[name]
        if isinstance(value, bool):
            found.append(option.opts[0] if value else option.secondary_opts[0])
        else:
            found += [option.opts[0], str(value)]
    return found


@contextlib.contextmanager
def written(values: dict[str, Any] | str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
        yield path


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Any recipe that is valid."""
    eighths = st.integers(16, 64).map(lambda n: n / 8)
    groups = st.sampled_from([None, 32, 64])
    integers = st.fixed_dictionaries({}, optional={"symmetric": st.booleans(), "group": groups})
    lattices = st.fixed_dictionaries({}, optional={"dimension": st.sampled_from([8, 16]), "shared": st.booleans()})
    method = draw(st.sampled_from(["nestquant", "integer", "glvq"]))
    bits = {"nestquant": eighths, "integer": st.integers(2, 8), "glvq": eighths}[method]
    code = {"nestquant": st.sampled_from([{"q": 14, "k": 4}, {"q": 6, "k": 2}]), "integer": integers, "glvq": lattices}
    others = st.just(16) if method == "glvq" else st.one_of(bits, st.just(16))
    tuned = st.fixed_dictionaries({}, optional={"steps": st.integers(1, 99), "rate": st.floats(1e-9, 1)})
    values = {
        "method": method,
        "weight_bits": draw(bits),
        "act_bits": draw(others),
        "kv_bits": draw(others),
        "act_method": draw(st.sampled_from([None, "nestquant", "integer"])),
        "dataset": draw(st.sampled_from(["wikitext2", "c4", "demo", "on", "010", "1:30", "my text.txt", "ü.jsonl"])),
        "samples": draw(st.integers(1, 1 << 20)),
        "seqlen": draw(st.integers(2, 1 << 20)),
        "text_field": draw(st.sampled_from([None, "text", "body", "010"])),
        "bos": draw(st.sampled_from(["default", "each", "none"])),
        "seed": draw(st.integers(0, (1 << 63) - 1)),
        "damping": draw(st.floats(0, 1, exclude_min=True)),
        "rotation": draw(st.sampled_from(["none", "hadamard", "learned"])),
        "reflections": draw(st.integers(1, 4096)),
        "feedback": draw(st.sampled_from(["none", "ldlq"])),
        "paths": draw(st.one_of(st.none(), st.integers(1, 64))),
        "output_metric": draw(st.sampled_from(["none", "two-sided"])),
        "allocation": draw(st.sampled_from(["uniform", "mixed"])),
        "act_allocation": draw(st.sampled_from(["uniform", "mixed"])),
        "tensor_parallel": draw(st.integers(1, 8)),
        **{name: draw(st.sampled_from([4, 5.125, 8, 16])) for name in ("embedding_bits", "head_bits")},
        **{name: draw(st.booleans()) for name in ("qa", "centering", "channel_scales", "sequential", "all_experts")},
        "tie_inputs": draw(st.booleans()),
        **{name: draw(st.one_of(st.none(), st.floats(0, 1))) for name in ("drift_correction", "residual_correction")},
        "tune": draw(st.one_of(st.none(), tuned)),
    }
    for part in ("weight", "act", "kv"):
        if values[f"{part}_bits"] != 16:
            own = values["act_method"] if part == "act" else None
            values[f"{part}_code"] = draw(st.one_of(st.none(), code[own or method]))
    coded = values["kv_bits"] != 16
    alone = st.one_of(st.none(), bits) if coded and "q" not in (values["kv_code"] or ()) else st.none()
    values |= {"key_bits": draw(alone), "value_bits": draw(alone)}
    values["kv_skip_layers"] = draw(st.sampled_from([None, "0", "0,1", "-1"] if coded else [None]))
    values |= {name: draw(st.sampled_from([0, 4] if coded else [0])) for name in ("kv_window", "kv_sinks")}
    values["key_scales"] = draw(st.booleans()) and coded
    assert set(SETTINGS) - set(values) <= {"bits", "weight_code", "act_code", "kv_code"}, "a new setting is not drawn"
    try:
        return Recipe(**values)
    except NestQuantError:
        assume(False)
        raise


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(recipe=recipes(), data=st.data())
def test_a_recipe_survives_a_file_the_command_line_and_any_division_between_them(
    recipe: Recipe, data: st.DataObject
) -> None:
    values = recipe.to_dict()
    with written(values) as path:
        assert read_recipe(path, {}) == recipe
        assert from_command_line([], path) == recipe
    coded = {f"{part}_bits" for part in ("weight", "act", "kv") if values[f"{part}_code"] is not None}
    if "key_bits" in values or "value_bits" in values:
        coded.add("kv_bits")  # which wins over them where it is typed
    free = [name for name in values if name in OPTIONS and values[name] is not None and name not in {*coded, "tune"}]
    typed = set(data.draw(st.lists(st.sampled_from(free), unique=True), label="on the command line"))
    with written({name.replace("_", "-"): value for name, value in values.items() if name not in typed}) as path:
        assert from_command_line(as_words({name: values[name] for name in typed}), path) == recipe


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(["bits", *BITS]), st.sampled_from([3, 4.5, 16])))
def test_bits_mean_the_same_in_a_file_and_on_the_command_line(bits: dict[str, float]) -> None:
    def outcome(read: Any) -> Any:
        try:
            return read()
        except NestQuantError as error:
            return error.cause

    with written(bits or "samples: 128\n") as path, written("seed: 0\n") as other:
        alone = outcome(lambda: read_recipe(path, {}))
        assert alone == outcome(lambda: from_command_line([], path))
        assert alone == outcome(lambda: from_command_line(as_words(bits)))
        assert alone == outcome(lambda: from_command_line(as_words(bits), other))


@pytest.mark.parametrize(
    ("file", "options", "expected"),
    [
        ("seed: 1", {}, (4, 4, 4)),
        ("weight-bits: 4", {}, (4, 16, 16)),
        ("samples: 4", {"weight_bits": 4}, (4, 16, 16)),
        ("bits: 3.5", {}, (3.5, 3.5, 3.5)),
        ("bits: 3\nact_bits: 16", {}, (3, 16, 3)),
        ("kv_bits: 6", {}, (16, 16, 6)),
        ("bits: 4", {"weight_bits": 3}, (3, 4, 4)),
        ("weight_bits: 3", {"kv_bits": 5}, (3, 16, 5)),
        ("weight_bits: 3\nact_bits: 16", {"bits": 4}, (4, 4, 4)),
        ("kv_bits: 4\nkey_bits: 5", {}, (16, 16, 4.5)),
        ("key_bits: 5\nvalue_bits: 4", {}, (16, 16, 4.5)),
        ("key_bits: 5\nkv_bits: 4", {"kv_bits": 3}, (16, 16, 3)),
        ("key_bits: 5\nkv_bits: 4", {"bits": 3}, (3, 3, 3)),
        ("kv_code: {q: 14, k: 4}", {"key_bits": 5, "weight_bits": 4}, (4, 16, 4.5)),
        ("seed: 1", {"key_bits": 5, "bits": 4}, (4, 4, 4.5)),
        ("method: glvq", {}, (4, 16, 16)),
        ("method: glvq", {"bits": 3}, (3, 16, 16)),
        ("bits: 3", {"method": "glvq"}, (3, 16, 16)),
        ("method: glvq\nbits: 3", {"method": "nestquant"}, (3, 3, 3)),
    ],
)
def test_the_rule_of_bits(file: str, options: dict[str, Any], expected: tuple[float, ...]) -> None:
    with written(file) as path:
        recipe = read_recipe(path, options)
        assert tuple(recipe.bits(part) for part in ("weight", "act", "kv")) == expected
        assert from_command_line(as_words(options), path) == recipe


def test_a_code_by_hand_names_its_part_and_bits_over_it_drop_nested_ones_alone() -> None:
    with written("weight_code: {q: 14, k: 4}\nkv_bits: 16\nsamples: 8\n") as path:
        recipe = read_recipe(path, {})
        assert [recipe.bits(part) for part in ("weight", "act", "kv")] == [33 / 8, 16, 16]
        recipe = read_recipe(path, {"weight_bits": 3, "samples": None, "seed": 5})
        assert (recipe.bits("weight"), recipe.kv_bits, recipe.samples, recipe.seed) == (3, 16, 8, 5)
        assert read_recipe(path, {"bits": 3}).bits("weight") == 3
    with written("method: integer\nweight_code: {group: 64}\nact_bits: 16\nkv_bits: 16\n") as path:
        assert read_recipe(path, {"weight_bits": 3}).shape("weight") == IntegerCode(3, True, 64)


def test_calibrate_gives_weights_their_default_where_other_parts_alone_are_named() -> None:
    recipe = read_recipe(None, {"act_bits": 16, "kv_bits": 16}, weight_bits=Recipe.weight_bits)
    assert recipe.tag() == "w4"


def test_a_method_of_activations_needs_their_bits() -> None:
    with written("act_method: integer\nweight_bits: 4\n") as path:
        with pytest.raises(NestQuantError, match=r"act_method integer codes nothing.*give act_bits"):
            read_recipe(path, {})
        assert read_recipe(path, {"act_bits": 8}).shape("act") == IntegerCode(8)
        assert read_recipe(path, {"act_bits": 16}).tag() == "w4"
    assert read_recipe(None, {"act_method": "integer"}).shape("act") == IntegerCode(4)


def test_layers_that_stay_in_16_bits_are_a_list_or_a_text() -> None:
    found = []
    for text in ("kv_skip_layers: [0, -1]", "kv_skip_layers: 0,-1", "kv-skip-layers: 0", "kv_skip_layers: null"):
        with written(text) as path:
            found.append(read_recipe(path, {}).kv_skip_layers)
    assert found == ["0, -1", "0,-1", "0", None]


def test_tune_is_yes_no_or_settings() -> None:
    found = []
    for text in ("tune: true", "tune: false", "tune: {held-out: 4}", "tune: null"):
        with written(text) as path:
            found.append(read_recipe(path, {}).tune)
    assert found == [{}, None, {"held_out": 4}, None]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bit: 4\n", "unknown setting 'bit'.*did you mean 'bits'"),
        ("weigth-bits: 4\n", "did you mean 'weight_bits'"),
        ("1: 4\n", "unknown setting '1'"),
        ("- weight_bits\n", "is not a YAML mapping"),
        ("", "is not a YAML mapping"),
        ("weight_bits: [4\n", "cannot be read as YAML"),
        ("weight_bits: four\n", "weight_bits 'four' is not a number"),
        ("bits:\n", "no value for 'bits'"),
        ("bits: null\n", "null for 'bits'"),
        ("rotation: ~\n", "null for 'rotation'"),
        ("weight-bits: 8\nweight_bits: 2\n", "has 'weight-bits' and, in line 2, 'weight_bits'"),
        ("weight_code: {q: 14, k: 4, q: 16}\n", "has 'q' and, in line 1, 'q'"),
    ],
)
def test_damaged_files_are_refused(text: str, told: str) -> None:
    with written(text) as path, pytest.raises(NestQuantError, match=told):
        read_recipe(path, {})
    with pytest.raises(NestQuantError, match="cannot be read as YAML"):
        read_recipe(Path("absent.yaml"), {})


def test_every_setting_of_a_recipe_may_be_misspelled() -> None:
    for name in SETTINGS:
        with written({f"{name}x": 4}) as path, pytest.raises(NestQuantError, match=rf"did you mean .*'{name}'"):
            read_recipe(path, {})
