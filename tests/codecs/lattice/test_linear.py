"""A LatticeLinear against arithmetic in float64 on what its tensors stand for."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nestquant_cli.codecs.lattice.code import LatticeCode
from nestquant_cli.codecs.lattice.linear import LatticeLinear
from nestquant_cli.codecs.lattice.rounding import quantize_rows
from nestquant_cli.codecs.registry import decoded
from nestquant_cli.modules.inputs import InputQuantizer
from nestquant_cli.modules.resident import resident_bytes, set_resident
from nestquant_cli.quantization.factors import Feedback
from tests.families import gaussian, relative_error

FEATURES, ROWS = 44, 10  # padded to 48


def made(shape: LatticeCode, seed: int | None) -> tuple[LatticeLinear, Tensor]:
    source = InputQuantizer(FEATURES, seed, None)
    found = quantize_rows(Feedback(gaussian(ROWS, source.padded), None, None, 0.0), [ROWS], shape, 0, 4)
    code: Any = found.codes[0]
    layer = LatticeLinear(FEATURES, ROWS, True, source, code, torch.float32)
    layer.load_state_dict(found.tensors[0] | {"bias": gaussian(ROWS, seed=1)})
    return layer, decoded(code, found.tensors[0], source.padded)


@pytest.mark.parametrize("shape", [LatticeCode(2, 8, 32), LatticeCode(3.5, 32, 32, True)], ids=str)
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_are_those_of_the_definition(shape: LatticeCode, seed: int | None, dtype: torch.dtype) -> None:
    layer, W = made(shape, seed)
    x = gaussian(3, 5, FEATURES, seed=2).to(dtype)
    coded = layer.source(x).dequantized().double()
    assert layer.bias is not None
    expected = F.linear(coded, W.double(), layer.bias.double()).view(3, 5, ROWS)
    found = layer(x)
    assert found.dtype == dtype
    assert relative_error(found, expected) < {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(layer.dequantized(), layer.source.unrotate(W))


@pytest.mark.parametrize(("form", "told"), [("packed", "packed"), ("auto", "packed")])
def test_it_stays_packed(form: str, told: str) -> None:
    layer, _ = made(LatticeCode(2, 8, 32), 0)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    assert set_resident(layer, form) == told
    set_resident(layer, "int8")
    assert layer.resident == "packed"
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    assert resident_bytes(layer) == sum(before[name].nbytes for name in ("words", "row_scale", "lattice"))
