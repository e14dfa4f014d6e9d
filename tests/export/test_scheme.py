"""What the format can say, against the compressed-tensors package, and what is refused."""

from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.transform.utils.hadamard import random_hadamard_matrix

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.codecs.integer.code import IntegerCode
from nestquant_cli.codecs.protocol import Grid
from nestquant_cli.codecs.weights import WeightCode
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.export.scheme import (
    DENSE,
    HADAMARD,
    grid_of,
    packed_integers,
    transform_name,
    transform_weight,
    transforms,
)
from nestquant_cli.modules.layout import Layout, LinearLayout
from nestquant_cli.rotation.orders import block_orders
from nestquant_cli.rotation.transform import rotation
from tests.families import gaussian


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [1, 31, 32, 72, 576])
def test_integers_are_packed_as_the_package_packs_them(bits: int, columns: int) -> None:
    limit = 1 << (bits - 1)
    V = torch.randint(-limit, limit, (3, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(bits))
    packed = packed_integers(V, bits)
    assert torch.equal(packed, pack_to_int32(V, bits))
    assert torch.equal(unpack_from_int32(packed, bits, V.shape), V)


def constructs(width: int) -> bool:
    try:
        random_hadamard_matrix(width, torch.float32, torch.device("meta"))
    except ValueError:
        return False
    return True


def test_hadamard_orders_are_those_that_the_package_knows() -> None:
    for width in [*range(8, 1200, 8), 1536, 2048, 3072, 4864, 8960, 11008, 14336, 18944, 29568, 13696]:
        expected = HADAMARD if len(block_orders(width)) == 1 and constructs(width) else DENSE
        assert transform_name(width) == expected, width


@pytest.mark.parametrize(("width", "kind"), [(24, HADAMARD), (576, HADAMARD), (536, DENSE), (94 * 8, DENSE)])
def test_the_weight_of_a_transform_rotates(width: int, kind: str) -> None:
    assert transform_name(width) == kind
    weight, x = transform_weight(width, 3).float(), gaussian(5, width)
    y = x @ weight / (width**0.5 if kind == HADAMARD else 1)
    torch.testing.assert_close(y, rotation(width, 3).apply(x), rtol=1e-4, atol=1e-5)


def layout(**changes: Any) -> Layout:
    nested = shape_for_bits(4)
    linears = {
        "a": LinearLayout(24, 8, False, "a", nested.with_multipliers((3, 4, 5))),
        "b": LinearLayout(536, 8, False, "b", nested.with_multipliers((3, 4, 5))),
    }
    return Layout(
        **{"weight_shape": nested, "act_shape": None, "kv_shape": None, "seed": 0, "linears": linears} | changes
    )


def test_a_nested_code_takes_eight_bits_and_each_width_its_transform() -> None:
    assert grid_of(layout()) == Grid(8, None)
    groups = transforms(layout(), ["lm_head"])
    assert {name: group["apply"][0]["targets"] for name, group in groups.items()} == {HADAMARD: ["a"], DENSE: ["b"]}
    one = transforms(layout(linears={"a": layout().linears["a"]}), ["lm_head"])
    assert one[HADAMARD]["apply"] == [{"targets": ["Linear"], "ignore": ["lm_head"], "location": "input"}]
    assert transforms(layout(rotation="none"), []) == {}


def one(features: int, code: WeightCode) -> dict[str, Any]:
    return {"linears": {"a": LinearLayout(features, 8, False, "a", code)}}


ZEROS, GROUPS = IntegerCode(4, symmetric=False), IntegerCode(4, group=64)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "16 bits": ({"weight_shape": None}, "in 16 bits"),
    "learned": ({"rotation": "learned", "reflections": {"a": 2}}, "learned"),
    "int16": (one(24, shape_for_bits(6).with_multipliers((3,))), "beyond int8"),
    "padded": (one(100, shape_for_bits(4).with_multipliers((3,))), "padded to a multiple of 8"),
    "zeros": (one(100, ZEROS) | {"weight_shape": ZEROS, "rotation": "none"}, "zero points"),
    "groups": (one(100, GROUPS) | {"weight_shape": GROUPS, "rotation": "none"}, "do not divide"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_format_cannot_say_is_refused(case: str) -> None:
    changes, told = REFUSED[case]
    with pytest.raises(NestQuantError, match=told) as caught:
        grid_of(layout(**changes))
    assert "nothing was written" in str(caught.value)
