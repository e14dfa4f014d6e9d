import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.codecs.factored import FactoredCode
from nestquant_cli.codecs.integer.code import IntegerCode
from nestquant_cli.codecs.nested.centered import CenteredCode
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.e8.shape import CodeShape, shape_for_bits
from nestquant_cli.modules.cache_codes import CacheCodes
from nestquant_cli.modules.layout import Layout, LinearLayout
from nestquant_cli.modules.parse_layout import parse_layout
from nestquant_cli.modules.unrounded import Unrounded
from nestquant_cli.rotation.seeds import ScaledSeed

FOUR, THREE = shape_for_bits(4), shape_for_bits(3)
CODE = ScaledCode(FOUR.with_multipliers((3, 4, 5, 6, 9)), 0.034)


def layout(weight: CodeShape | None = FOUR, act: CodeShape | None = FOUR, kv: CodeShape | None = FOUR) -> Layout:
    code = None if weight is None else weight.with_multipliers((3, 5))
    return Layout(
        weight,
        act,
        kv,
        seed=7,
        linears={
            "l.0.q": LinearLayout(64, 32, True, "l.0.q", code),
            "l.0.k": LinearLayout(64, 16, False, "l.0.q", code),
        },
        inputs={"l.0.q": None if act is None else CODE},
        cache=[] if kv is None else [CacheCodes(CODE, ScaledCode(FOUR.with_multipliers((1,)), 0.5))],
    )


def centered(size: int) -> CenteredCode:
    return CenteredCode(CODE, (bytes(CODE.pack(torch.ones(1, size))[0].tolist()),))


def test_centers_are_of_version_three_and_of_the_size_of_their_input() -> None:
    example = layout()
    assert example.version == 1
    example.inputs["l.0.q"] = centered(64)
    assert example.version == 3
    assert parse_layout(json.loads(json.dumps(example.to_dict()))) == example
    example.inputs["l.0.q"] = centered(72)
    with pytest.raises(NestQuantError, match=r"inputs\.l\.0\.q has no center of its size"):
        parse_layout(example.to_dict())


def parted(**parts: Any) -> dict[str, Any]:
    """The JSON of a layout whose input of 64 has two parts, or what is given."""
    example = layout()
    example.parts["l.0.q"] = 2
    assert example.version == 6
    return example.to_dict() | parts


def test_parts_are_of_version_six() -> None:
    read = parse_layout(json.loads(json.dumps(parted())))
    assert read.parts == {"l.0.q": 2} and read.to_dict() == parted()
    read.inputs["l.0.q"] = CenteredCode(CODE, centered(32).packed * 2)
    assert parse_layout(read.to_dict()) == read
    assert "parts" not in layout().to_dict()


def factored(**changes: Any) -> dict[str, Any]:
    """The JSON of a layout whose input of 64 has factors of its channels, or what is given."""
    example = layout()
    example.factors["l.0.q"] = bytes(range(13, 77))
    assert example.version == 7
    return example.to_dict() | changes


def test_factors_are_of_version_seven() -> None:
    read = parse_layout(json.loads(json.dumps(factored())))
    assert read.factors == {"l.0.q": bytes(range(13, 77))} and read.to_dict() == factored()
    assert read.seed_of("l.0.q") == ScaledSeed(7, bytes(range(13, 77))) and read.seed_of("l.1.q") == 7
    assert "factors" not in layout().to_dict()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"factors": {"l.0.q": 63 * "P"}}, "is not a factor for each channel"),
        ({"factors": {"l.0.k": 64 * "P"}}, "is not a factor for each channel"),
        ({"factors": {"l.0.q": 5}}, "factors must be texts"),
        ({"factors": {"l.0.q": 63 * "P" + "ß"}}, "a character stands for no factor"),
        ({"factors": []}, "factors is not an object"),
        ({"rotation": "none"}, "beside the signs of a rotation"),
    ],
)
def test_other_factors_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(NestQuantError, match=told):
        parse_layout(factored(**changes))


def test_factors_of_keys_are_of_version_seven() -> None:
    keys = FactoredCode(CODE, (bytes(range(16)), bytes(range(75, 91))))
    example = replace(layout(), cache=[CacheCodes(keys, CODE)])
    written = json.loads(json.dumps(example.to_dict()))
    assert example.version == 7 and [len(text) for text in written["cache"][0]["keys"]["factors"]] == [16, 16]
    assert parse_layout(written) == example
    assert "factors" not in layout().to_dict()["cache"][0]["keys"]
    before = parse_layout(written | {"format_version": 6})  # which ignores the field
    assert before.cache == [CacheCodes(CODE, CODE)]
    for wrong in (["P"], ["P", "PP"], "PP", []):
        written["cache"][0]["keys"]["factors"] = wrong
        if wrong == ["P"]:
            parse_layout(written)  # how many heads there are is known when keys come
            continue
        with pytest.raises(NestQuantError, match="factors of keys"):
            parse_layout(written)


def single() -> dict[str, Any]:
    """The JSON of a layout with an input in int8, besides one of the shape of all."""
    example = layout()
    example.inputs["l.1.q"] = IntegerCode(8, clip=0.98)
    example.act_shapes["l.1.q"] = IntegerCode(8)
    assert example.version == 7
    return example.to_dict()


def test_shapes_of_single_inputs_are_of_version_seven() -> None:
    read = parse_layout(json.loads(json.dumps(single())))
    assert read.inputs == {"l.0.q": CODE, "l.1.q": IntegerCode(8, clip=0.98)} and read.to_dict() == single()
    assert read.act_shapes == {"l.1.q": IntegerCode(8)} and "act_codes" not in layout().to_dict()
    with pytest.raises(NestQuantError, match="act_codes names what is no input"):
        parse_layout(single() | {"act_codes": dict.fromkeys(("l.1.q", "l.2.q"), IntegerCode(8).to_dict())})
    with pytest.raises(NestQuantError, match="act_codes is there without act_code"):
        parse_layout(single() | {"act_code": None})
    with pytest.raises(NestQuantError, match="there is no codec 'magic'"):
        parse_layout(single() | {"act_codes": {"l.1.q": {"codec": "magic"}}})
    with pytest.raises(NestQuantError, match="act_codes is not an object"):
        parse_layout(single() | {"act_codes": []})


def test_a_shape_of_values_is_of_version_seven() -> None:
    values = ScaledCode(THREE.with_multipliers((3, 5)), 0.5)
    example = replace(layout(), cache=[CacheCodes(CODE, values), None], value_shape=THREE)
    assert example.version == 7
    read = parse_layout(json.loads(json.dumps(example.to_dict())))
    assert read == example
    assert "value_code" not in layout().to_dict()
    with pytest.raises(NestQuantError, match="value_code is there without kv_code"):
        parse_layout(example.to_dict() | {"kv_code": None})


def test_unrounded_tokens_are_of_version_seven() -> None:
    example = replace(layout(), unrounded=Unrounded(64, 4))
    assert example.version == 7 and example.to_dict()["kv_unrounded"] == {"window": 64, "sinks": 4}
    assert parse_layout(json.loads(json.dumps(example.to_dict()))) == example
    assert "kv_unrounded" not in layout().to_dict()
    for wrong in ({"window": -1, "sinks": 0}, {"window": 4}, [64, 4], {"window": 1 << 30, "sinks": 0}):
        with pytest.raises(NestQuantError, match="kv_unrounded"):
            parse_layout(example.to_dict() | {"kv_unrounded": wrong})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"parts": {"l.0.q": 3}}, "cannot be divided so"),
        ({"parts": {"l.0.q": 16}}, "cannot be divided so"),
        ({"parts": {"l.0.k": 2}}, "what is no input"),
        ({"parts": {"l.0.q": 1}}, "must be an integer from 2"),
        ({"parts": []}, "parts is not an object"),
        ({"rotation": "learned", "reflections": {"l.0.q": 4}}, "an input with a learned rotation"),
        ({"inputs": {"l.0.q": centered(64).fitted()}}, "has no center of its size"),
    ],
)
def test_other_parts_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(NestQuantError, match=told):
        parse_layout(parted(**changes))


@pytest.mark.parametrize("example", [layout(), layout(THREE, None, None), layout(None, FOUR, None), layout(FOUR, None)])
def test_round_trip_through_json(example: Layout) -> None:
    assert parse_layout(json.loads(json.dumps(example.to_dict()))) == example


def changed(path: str, value: Any) -> dict[str, Any]:
    """The JSON of `layout()` with one field replaced, or removed where value is `...`."""
    whole: dict[str, Any] = json.loads(json.dumps(layout().to_dict()))
    *parents, last = path.split("/")
    item: Any = whole
    for key in parents:
        item = item[int(key)] if isinstance(item, list) else item[key]
    if value is ...:
        del item[last]
    else:
        item[last] = value
    return whole


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("format_version", 8, "format version 8, this nestquant reads 1 to 7"),
        ("format_version", ..., "format_version must be an integer"),
        ("cache/0/keys/centers", ["AAAA"], "a center has a scale that is none"),
        ("inputs/l.0.q/centers", 7, "centers must be a list"),
        ("seed", -1, "seed must be an integer"),
        ("seed", True, "seed must be an integer"),
        ("weight_code/q", 1, "code.q must be an integer from 2"),
        ("weight_code/word_bits", 16, "does not fit a word of 16 bits"),
        ("weight_code", [], "code is not an object"),
        ("weight_code", None, None),
        ("linears", [], "linears is not an object"),
        ("linears/l.0.q/in_features", 0, "in_features must be an integer from 1"),
        ("linears/l.0.q/in_features", 128, "has another in_features"),
        ("linears/l.0.q/input", "nowhere", "names 'nowhere', which inputs does not have"),
        ("linears/l.0.q/bias", 1, "bias must be true or false"),
        ("linears/l.0.q/multipliers", [5, 3], "must increase"),
        ("linears/l.0.q/multipliers", [1, 2, 3, 4, 5, 6], "must be 1 to 5 positive integers"),
        ("linears/l.0.q/multipliers", [], "must be 1 to 5 positive integers"),
        ("inputs/l.0.q/unit", 0, "unit must be a number above 0"),
        ("inputs/l.0.q/unit", float("nan"), "unit must be a number above 0"),
        ("inputs/l.0.q/unit", 10**400, "unit must be a number above 0"),
        ("inputs/l.0.q", None, "inputs is not an object"),
        ("linears/l.0.q/code", {"q": 13}, "code.k must be an integer"),
        ("linears/l.0.q/code", {"q": 4, "k": 1, "word_bits": 16, "limit": 127}, "must be 1 to 1 positive integers"),
        ("cache", {}, "cache is not a list"),
        ("cache/0/values", ..., "cache.values is not an object"),
    ],
)
def test_damaged_fields_are_named(path: str, value: Any, told: str | None) -> None:
    if told is None:
        assert parse_layout(changed(path, value)).weight_shape is None
        return
    with pytest.raises(NestQuantError, match=told.replace(".", r"\.")):
        parse_layout(changed(path, value))


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from([10**400, -1, 0, 1]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=6,
)


def paths(value: Any, prefix: str = "") -> list[str]:
    """Paths of all fields of a JSON value."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    own = [f"{prefix}{key}" for key, _ in items if isinstance(value, dict)]
    return own + [path for key, item in items for path in paths(item, f"{prefix}{key}/")]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(paths(layout().to_dict())), JUNK | st.just(...))
def test_whatever_one_field_becomes_only_our_error_is_raised(path: str, value: Any) -> None:
    try:
        parse_layout(changed(path, value))
    except NestQuantError:
        return


@settings(max_examples=100, deadline=None)
@given(JUNK)
def test_whatever_the_whole_is_only_our_error_is_raised(value: Any) -> None:
    with pytest.raises(NestQuantError):
        parse_layout(value)
