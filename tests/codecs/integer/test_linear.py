from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nestquant_cli.codecs.integer.code import IntegerCode
from nestquant_cli.codecs.integer.linear import IntegerLinear
from nestquant_cli.codecs.integer.rounding import IntegerRounder
from nestquant_cli.codecs.ldlq import ldlq
from nestquant_cli.codecs.registry import decoded
from nestquant_cli.modules.inputs import InputQuantizer
from nestquant_cli.modules.resident import set_resident
from tests.families import gaussian, relative_error

FEATURES, ROWS = 44, 10  # padded to 48
WEIGHTS = [IntegerCode(4), IntegerCode(3, symmetric=False), IntegerCode(4, False, 16), IntegerCode(8, False)]
INPUTS = [None, IntegerCode(4, clip=0.9), IntegerCode(4, False, clip=1.0), IntegerCode(8, False, 16, 1.0)]


def made(code: IntegerCode, inputs: IntegerCode | None, seed: int | None) -> tuple[IntegerLinear, Tensor]:
    """A layer with random weights and a bias, and the weight that it stands for, in its basis."""
    source = InputQuantizer(FEATURES, seed, inputs)
    layer: Any = IntegerLinear(FEATURES, ROWS, True, source, code, torch.float32)  # type: ignore[arg-type]
    rounder = IntegerRounder(gaussian(ROWS, source.padded), [ROWS], code)
    ldlq(gaussian(ROWS, source.padded), None, rounder.round, rounder.columns, rounder.panel, rounder.open)
    tensors = rounder.finish().tensors[0]
    layer.load_state_dict(tensors | {"bias": gaussian(ROWS, seed=1)})
    return layer, decoded(code, tensors, source.padded)


@pytest.mark.parametrize("code", WEIGHTS, ids=str)
@pytest.mark.parametrize("inputs", INPUTS, ids=str)
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("form", ["packed", "int8"])
def test_products_are_those_of_the_definition(
    code: IntegerCode, inputs: IntegerCode | None, seed: int | None, form: str
) -> None:
    layer, W = made(code, inputs, seed)
    set_resident(layer, form)
    assert layer.resident == (form if code.int8 else "packed")
    x = gaussian(3, 5, FEATURES, seed=2)
    coded = layer.source(x).dequantized()
    expected = F.linear(coded.double(), W.double(), layer.bias.double()).view(3, 5, ROWS)  # type: ignore[union-attr]
    assert relative_error(layer(x), expected) < 1e-5
    single = layer(x[:1, :1])
    assert relative_error(single, expected[:1, :1]) < 2e-3
    torch.testing.assert_close(layer.dequantized(), layer.source.unrotate(W))


@pytest.mark.parametrize("code", WEIGHTS, ids=str)
def test_forms_keep_the_bytes(code: IntegerCode) -> None:
    layer, _ = made(code, None, 0)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    packed = layer.resident_bytes()
    for form in ("int8", "packed"):
        set_resident(layer, form)
        after = layer.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert layer.resident_bytes() == packed


@pytest.mark.parametrize("code", WEIGHTS, ids=str)
def test_the_input_has_the_gradient_of_one_that_is_not_rounded(code: IntegerCode) -> None:
    layer, _ = made(code, INPUTS[1], 3)
    x, upstream = gaussian(2, 5, FEATURES).requires_grad_(), gaussian(2, 5, ROWS, seed=4)
    layer(x).backward(upstream)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, upstream @ layer.dequantized(), rtol=1e-4, atol=1e-4)
