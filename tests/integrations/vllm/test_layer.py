"""A coded layer of vLLM gives what the quantized Linears of its matrices give, to the bit."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nestquant_cli.codecs.registry import codec_of
from nestquant_cli.codecs.vectors import VectorCode
from nestquant_cli.integrations.vllm.layer import CodedLayer, Int8Linear, LayerInput, coded_layer
from nestquant_cli.modules.inputs import InputQuantizer
from nestquant_cli.modules.linear import QuantizedLinear
from nestquant_cli.rotation.reflections import Reflections
from tests.families import gaussian
from tests.integrations.vllm.matrices import ALL, IN, INTEGER, NESTED, Weight, activations, matrix


def made(
    weights: list[Weight], act: VectorCode | None, dtype: torch.dtype, int8: bool, learned: Reflections | None = None
) -> tuple[CodedLayer, list[QuantizedLinear], Tensor]:
    """A layer, the Linears that transformers would have for it, and their biases one after another."""
    sizes = [8 * (number + 2) for number in range(len(weights))]
    matrices = [matrix(weight, rows, number) for number, (weight, rows) in enumerate(zip(weights, sizes, strict=True))]
    source = LayerInput(IN, 1, act, learned)
    pieces = [piece for piece, _ in matrices]
    tensors = [
        {name: tensor.to(dtype) if name == "weight" else tensor.clone() for name, tensor in stored.items()}
        for _, stored in matrices
    ]
    layer = coded_layer(pieces, tensors, lambda name: source, dtype, int8)
    shared, linears = InputQuantizer(IN, 1, act, learned), []
    bias = gaussian(sum(sizes), seed=7).to(dtype)
    for piece, stored, part in zip(pieces, tensors, bias.split(sizes), strict=True):
        code: Any = piece.linear.code
        kind = QuantizedLinear if code is None else codec_of(code).linear
        linear = kind(IN, piece.place.rows, True, shared, code, dtype)
        linear.load_state_dict({**stored, "bias": part})
        if int8:
            linear.hold_int8()
        linears.append(linear)
    return layer, linears, bias


def both(layer: CodedLayer, linears: list[QuantizedLinear], bias: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        return layer.compute(x, bias), torch.cat([linear(x) for linear in linears], dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("weight", ALL, ids=str)
def test_one_matrix(weight: Weight, bits: float | None, int8: bool, dtype: torch.dtype) -> None:
    layer, linears, bias = made([weight], activations(bits), dtype, int8)
    for tokens in (1, 3, 40):
        got, expected = both(layer, linears, bias, gaussian(tokens, IN, seed=tokens).to(dtype))
        assert got.dtype == dtype and torch.equal(got, expected)


@given(
    st.lists(st.sampled_from(ALL), min_size=2, max_size=4),
    st.sampled_from([None, 4, 8]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 20),
)
@settings(max_examples=25)
def test_several_matrices(
    weights: list[Weight], bits: float | None, int8: bool, dtype: torch.dtype, tokens: int
) -> None:
    layer, linears, bias = made(weights, activations(bits), dtype, int8)
    got, expected = both(layer, linears, bias, gaussian(tokens, IN, seed=1).to(dtype))
    assert torch.equal(got, expected)


def test_rows_of_one_kind_are_one_product() -> None:
    layer, _, _ = made([NESTED, ("nestquant", 3, None), INTEGER], None, torch.bfloat16, int8=True)
    assert [type(linear) for linear in layer.linears] == [Int8Linear] and layer.rows == 16 + 24 + 32


def test_an_input_is_rotated_once_and_then_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _, bias = made([NESTED, ("nestquant", 6, None), INTEGER], activations(4), torch.float32, int8=False)
    coded: list[Tensor] = []
    kept = LayerInput.code_tokens
    monkeypatch.setattr(LayerInput, "code_tokens", lambda self, x: coded.append(x) or kept(self, x))
    x = gaussian(3, IN)
    first = layer.compute(x, bias)
    assert len(coded) == 1
    x.add_(1)  # the buffer of an engine is written again
    assert not torch.equal(layer.compute(x, bias), first) and len(coded) == 2


def test_a_learned_rotation_may_be_set_after_the_layer_is_made() -> None:
    learned = Reflections(2, IN)
    layer, linears, bias = made([NESTED, INTEGER], activations(4), torch.float32, int8=True, learned=learned)
    learned.reflectors = Reflections.of(gaussian(2, IN, seed=8)).reflectors
    got, expected = both(layer, linears, bias, gaussian(5, IN))
    assert torch.equal(got, expected)


def test_an_error_leaves_nothing_of_the_input() -> None:
    layer, _, bias = made([NESTED, NESTED], None, torch.float32, int8=False)
    with pytest.raises(RuntimeError):
        layer.compute(gaussian(3, IN), bias.repeat(2)[: len(bias) - 1])
    x = gaussian(3, IN, seed=3)
    assert torch.equal(layer.compute(x, None), torch.cat([linear.compute(x, None) for linear in layer.linears], -1))


def test_the_weight_dequantized() -> None:
    layer, linears, _ = made([NESTED, INTEGER, ("glvq", 2, None)], None, torch.float32, int8=True)
    assert torch.allclose(layer.dequantized(), torch.cat([linear.dequantized() for linear in linears]), atol=1e-6)
