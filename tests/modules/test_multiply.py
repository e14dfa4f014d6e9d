"""The decision which way multiplies: every row of it, that the way is really taken, and what is said of it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from nestquant_cli.codecs.integer.code import IntegerCode
from nestquant_cli.codecs.integer.linear import IntegerLinear
from nestquant_cli.codecs.lattice.code import LatticeCode
from nestquant_cli.codecs.lattice.linear import LatticeLinear
from nestquant_cli.codecs.nested.centered import CenteredCode
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.codecs.nested.linear import NestedLinear
from nestquant_cli.codecs.row_scale import row_scale_bits
from nestquant_cli.codecs.vectors import VectorCode
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.kernels import for_device
from nestquant_cli.kernels.limits import LIMITS
from nestquant_cli.modules import multiply, ways
from nestquant_cli.modules.explain import describe
from nestquant_cli.modules.inputs import InputQuantizer
from nestquant_cli.modules.linear import QuantizedLinear
from nestquant_cli.modules.multiply import Choice, TokenForm, WeightForm, choose
from tests.families import gaussian, relative_error

NESTED = ScaledCode(shape_for_bits(4).with_multipliers((3, 4, 5, 6, 9)), 0.9 / 13 / 2)
WIDE = ScaledCode(shape_for_bits(6).with_multipliers((3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17)), 0.4 / 46 / 2)
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16

# Forms of weights: (integers with one scale a row, int8, words of a nested code).
KEPT = WeightForm("16 bit")
GROUPS = WeightForm("int8", integers=False, int8=True)
INT8 = WeightForm("int8", integers=True, int8=True, nested=True)
PACKED = WeightForm("packed", integers=True, int8=True, nested=True)
PACKED_WIDE = WeightForm("packed", integers=True, nested=True)
DIGITS = WeightForm("packed", integers=True, int8=True)

# Tokens as they come to the product.
NARROW, SINGLE, HALF = (TokenForm(dtype, None, fused=True) for dtype in (BFLOAT16, FLOAT32, FLOAT16))
UNFUSED = TokenForm(BFLOAT16, None, fused=False)
ROUNDED, ROUNDED_WIDE = (TokenForm(BFLOAT16, integers, fused=False) for integers in (torch.int8, torch.int16))
PARTED = ROUNDED._replace(parted=True)

# By family: the limits of devices that have all kernels, whichever machine runs the tests.
CPU = replace(LIMITS["cpu"], rounded_tokens=64, int16_tokens=1024)
FAMILIES = LIMITS | {"cpu": CPU, "cpu without VNNI": replace(CPU, rounded_tokens=0, int16_tokens=0)}

ROWS = [
    ("cpu", KEPT, NARROW, {1: "kept_weight", 100: "kept_weight"}),
    ("cpu", GROUPS, SINGLE, {1: "float32_values", 100: "float32_values"}),
    ("cpu", INT8, NARROW, {0: "joined_rows", 64: "joined_rows", 65: "int16_rows", 1025: "bfloat16_rows"}),
    ("cpu without VNNI", INT8, NARROW, {0: "joined_rows", 4: "joined_rows", 5: "bfloat16_rows"}),
    ("cpu", INT8, SINGLE, {4: "joined_rows", 5: "float_rows"}),
    ("cpu", INT8, HALF, {4: "joined_rows", 5: "float_rows"}),
    ("cpu", INT8, UNFUSED, {1: "int16_rows", 100: "int16_rows"}),
    ("cpu without VNNI", INT8, UNFUSED, {1: "float_rows", 100: "float_rows"}),
    ("cpu", INT8, ROUNDED, {1: "integer_sums", 100: "integer_sums"}),
    ("cpu", INT8, ROUNDED_WIDE, {1: "float_rows"}),
    ("cpu", PACKED, NARROW, {1: "words_by_few", 2: "int16_rows", 100: "int16_rows"}),
    ("cpu without VNNI", PACKED, NARROW, {1: "words_by_few", 2: "bfloat16_rows", 100: "bfloat16_rows"}),
    ("cpu", PACKED, SINGLE, {1: "words_by_few", 2: "float_rows"}),
    ("cpu", PACKED, UNFUSED, {1: "words_by_few", 2: "int16_rows"}),
    ("cpu", PACKED, ROUNDED, {1: "integer_sums", 100: "integer_sums"}),
    ("cpu", PACKED, ROUNDED_WIDE, {1: "float_rows"}),
    ("cpu", PACKED_WIDE, NARROW, {1: "words_by_few", 2: "float_rows"}),
    ("cpu", PACKED_WIDE, ROUNDED, {1: "float_rows"}),
    ("cpu", INT8, PARTED, {1: "integer_sums_of_parts", 100: "integer_sums_of_parts"}),
    ("cpu", PACKED, PARTED, {1: "integer_sums_of_parts"}),
    ("cpu", PACKED_WIDE, PARTED, {1: "float_rows"}),
    ("gpu", PACKED, PARTED, {1: "integer_sums_of_parts"}),
    ("cpu", DIGITS, NARROW, {1: "int16_rows", 100: "int16_rows"}),
    ("cpu", DIGITS, ROUNDED, {1: "integer_sums"}),
    (
        "gpu",
        PACKED,
        UNFUSED,
        {1: "words_by_few", 4: "words_by_few", 5: "words_by_many", 64: "words_by_many", 65: "float_rows"},
    ),
    ("gpu", PACKED, TokenForm(FLOAT16, None, False), {4: "words_by_few", 5: "float_rows"}),
    ("gpu", PACKED, ROUNDED, {1: "words_by_integers", 10**9: "words_by_integers"}),
    ("gpu", PACKED, ROUNDED_WIDE, {4: "words_by_few", 64: "words_by_many", 65: "float_rows"}),
    ("gpu", PACKED_WIDE, UNFUSED, {4: "words_by_few", 5: "float_rows"}),
    ("gpu", PACKED_WIDE, ROUNDED, {4: "words_by_few", 5: "float_rows"}),
    ("gpu", INT8, UNFUSED, {1: "float_rows", 100: "float_rows"}),
    ("gpu", INT8, ROUNDED, {1: "integer_sums"}),
    ("gpu", DIGITS, UNFUSED, {1: "float_rows"}),
    ("reference", PACKED, UNFUSED, {1: "float_rows", 100: "float_rows"}),
    ("reference", PACKED, ROUNDED, {1: "integer_sums"}),
    ("reference", INT8, UNFUSED, {1: "float_rows"}),
]


@pytest.mark.parametrize(("family", "weight", "tokens", "taken"), ROWS)
def test_every_row_of_the_decision(family: str, weight: WeightForm, tokens: TokenForm, taken: dict[int, str]) -> None:
    kernels: Any = None
    choice = Choice(kernels, choose(weight, tokens, FAMILIES[family]))
    assert {count: choice.way(count).__name__ for count in taken} == taken


def test_every_way_is_in_a_row_and_says_what_it_is() -> None:
    named = {name for *_, taken in ROWS for name in taken.values()}
    written = {name for name, value in vars(ways).items() if callable(value) and value.__module__ == ways.__name__}
    assert named == written - {"Weight", "float_product", "_by_panels", "_finished"}
    assert all(getattr(ways, name).__doc__.partition("\n")[0].endswith(".") for name in named)


def layer_of(kind: str, act: VectorCode | None, dtype: torch.dtype, seed: int | None, size: int) -> QuantizedLinear:
    source = InputQuantizer(size, seed, act)
    codes: dict[str, Any] = {
        "nested": NESTED.code,
        "wide": WIDE.code,
        "integers": IntegerCode(4),
        "groups": IntegerCode(4, group=16),
        "lattices": LatticeCode(2, 8, 32, group_bits=(2,) * (size // 32), curves=(2,) * (size // 32)),
        "16 bit": None,
    }
    classes = {"integers": IntegerLinear, "groups": IntegerLinear, "lattices": LatticeLinear, "16 bit": QuantizedLinear}
    layer = classes.get(kind, NestedLinear)(size, 24, True, source, codes[kind], dtype)
    if kind == "16 bit":
        layer.weight.data = gaussian(24, size).to(dtype)
        return layer
    layer.row_scale = row_scale_bits(0.01 + torch.rand(layer.row_scale.shape))
    if kind in ("nested", "wide"):
        kernels = for_device(layer.words.device)
        v, index, _ = kernels.quantize(gaussian(24, size), torch.full((24,), 0.02), layer.code)
        layer.words = kernels.pack(v, index, layer.code)
    else:
        layer.words.random_(generator=torch.Generator().manual_seed(0))
    if kind == "lattices":
        layer.lattice = gaussian(*layer.lattice.shape).half().view(torch.int16)
    return layer


CENTERED = CenteredCode(NESTED, (bytes(NESTED.pack(0.05 * gaussian(1, 192, seed=9))[0].tolist()),))


@pytest.mark.parametrize(
    ("kind", "form", "act", "dtype", "seed", "size", "taken"),
    [
        ("nested", "packed", None, BFLOAT16, 1, 192, {1: "words_by_few", 3: "int16_rows"}),
        ("nested", "packed", None, FLOAT16, 1, 192, {1: "words_by_few", 3: "float_rows"}),
        ("nested", "int8", None, BFLOAT16, 1, 192, {1: "joined_rows", 64: "joined_rows", 65: "int16_rows"}),
        ("nested", "int8", None, FLOAT32, 1, 192, {4: "joined_rows", 5: "float_rows"}),
        ("nested", "int8", None, BFLOAT16, 1, 200, {1: "int16_rows"}),  # 25 is a factor that no kernel rotates
        ("nested", "int8", None, BFLOAT16, None, 192, {1: "int16_rows"}),
        ("nested", "int8", None, FLOAT32, None, 192, {1: "float_rows"}),
        ("nested", "packed", NESTED, BFLOAT16, 1, 192, {1: "integer_sums", 5: "integer_sums"}),
        ("nested", "int8", CENTERED, BFLOAT16, 1, 192, {1: "integer_sums", 5: "integer_sums"}),
        ("nested", "packed", WIDE, BFLOAT16, 1, 192, {1: "float_rows", 5: "float_rows"}),
        ("nested", "packed", IntegerCode(8, False, 16, 1.0), FLOAT32, 1, 192, {1: "words_by_few", 5: "float_rows"}),
        ("wide", "packed", NESTED, FLOAT32, 1, 192, {1: "float_rows"}),
        ("wide", "int8", None, FLOAT32, 1, 192, {1: "words_by_few", 5: "float_rows"}),
        ("integers", "packed", None, BFLOAT16, 1, 192, {1: "int16_rows", 5: "int16_rows"}),
        ("integers", "int8", None, BFLOAT16, 1, 192, {1: "joined_rows", 65: "int16_rows"}),
        ("integers", "int8", CENTERED, FLOAT32, 1, 192, {1: "integer_sums"}),
        ("groups", "int8", NESTED, FLOAT32, 1, 192, {1: "float32_values"}),
        ("lattices", "packed", None, BFLOAT16, 1, 192, {1: "float32_values"}),
        ("16 bit", "packed", NESTED, BFLOAT16, 1, 192, {1: "kept_weight"}),
    ],
)
def test_a_layer_takes_the_way_and_multiplies(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    form: str,
    act: VectorCode | None,
    dtype: torch.dtype,
    seed: int | None,
    size: int,
    taken: dict[int, str],
) -> None:
    monkeypatch.setattr(for_device(torch.device("cpu")), "limits", CPU)
    layer = layer_of(kind, act, dtype, seed, size)
    calls: list[str] = []
    for name in {name for *_, names in ROWS for name in names.values()}:
        monkeypatch.setattr(ways, name, noting(getattr(ways, name), calls))
    layer.hold_int8() if form == "int8" else layer.hold_packed()
    for tokens, way in taken.items():
        x = gaussian(tokens, size, seed=tokens).to(dtype)
        y = layer(x)
        assert calls.pop() == way and not calls
        coded = layer.source.unrotate(layer.source(x).dequantized()).double()
        expected = coded @ layer.dequantized().double().t() + layer.bias.double()  # type: ignore[union-attr]
        assert y.dtype == dtype and relative_error(y, expected) < 1e-2


def noting(way: Any, calls: list[str]) -> Any:
    def noted(*arguments: Any) -> Any:
        calls.append(way.__name__)
        return way(*arguments)

    return noted


def test_the_choice_is_made_once_for_a_form_and_a_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []
    choice_for = multiply.choice_for
    monkeypatch.setattr(multiply, "choice_for", lambda *facts: (made.append(facts), choice_for(*facts))[1])
    layer = layer_of("nested", None, FLOAT32, 1, 192)
    for tokens in (1, 2, 1, 40):
        layer(gaussian(tokens, 192))
    assert len(made) == 1
    layer(gaussian(1, 192).bfloat16())
    assert len(made) == 2
    layer.hold_int8()
    layer(gaussian(1, 192))
    assert len(made) == 3 and made[-1][0].resident == "int8"


@pytest.mark.parametrize(
    ("code", "form", "source", "ranges"),
    [
        (NESTED.code, "packed", None, ["1 token", "2 to 1024 tokens", "1025 tokens and more"]),
        (NESTED.code, "int8", None, ["up to 64 tokens", "65 to 1024 tokens", "1025 tokens and more"]),
        (NESTED.code, "int8", InputQuantizer(192, 1, CENTERED), ["any number of tokens"]),
        (WIDE.code, "int8", None, ["1 token", "2 tokens and more"]),
        (IntegerCode(4, group=16), "int8", None, ["any number of tokens"]),
        (None, "packed", InputQuantizer(192, 1, NESTED), ["any number of tokens"]),
    ],
)
def test_the_ways_in_words(
    monkeypatch: pytest.MonkeyPatch, code: Any, form: str, source: InputQuantizer | None, ranges: list[str]
) -> None:
    monkeypatch.setattr(for_device(torch.device("cpu")), "limits", CPU)
    said = describe(code, form, torch.device("cpu"), BFLOAT16, source)
    assert list(said) == ranges
    assert all(phrase[0].islower() and len(phrase.split()) > 4 and phrase[-1] != "." for phrase in said.values())
