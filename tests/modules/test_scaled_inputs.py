"""Inputs whose channels have factors: what comes out of every way of rotating and rounding them."""

from typing import Any

import numpy as np
import pytest
import torch

from nestquant_cli.codecs.nested.linear import NestedLinear
from nestquant_cli.codecs.registry import codec_of, fit_heads, shape_of
from nestquant_cli.codecs.vectors import VectorCode
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.kernels.device_kernels import of_family
from nestquant_cli.modules.inputs import InputQuantizer
from nestquant_cli.modules.linear import QuantizedLinear
from nestquant_cli.quantization.factors import Feedback
from nestquant_cli.rotation.reflections import Reflections
from nestquant_cli.rotation.seeds import ScaledSeed, bytes_of
from tests.families import gaussian, relative_error

FEATURES = 96
SEED = ScaledSeed(5, bytes_of(np.exp2(gaussian(FEATURES, seed=9).numpy().astype(np.float64))))
FACTORS = torch.from_numpy(SEED.values()).float()
CODES: dict[str, tuple[str, float, Any]] = {
    "nested": ("nestquant", 4, None),
    "six": ("nestquant", 6, None),
    "integer": ("integer", 8, None),
    "groups": ("integer", 4, {"group": 16}),
}
EXTRA: dict[str, dict[str, Any]] = {
    "plain": {},
    "parts": {"parts": 3},
    "reflected": {"reflections": Reflections.of(gaussian(4, FEATURES, seed=2))},
}


def code_for(kind: str | None, offset: float, extra: str) -> VectorCode | None:
    if kind is None:
        return None
    method, bits, settings = CODES[kind]
    parts = EXTRA[extra].get("parts", 1)
    tokens = InputQuantizer(FEATURES, SEED, None, **EXTRA[extra]).rotate(gaussian(300, FEATURES, seed=3) + offset)
    heads = tokens.unflatten(1, (parts, -1)).transpose(0, 1)
    return fit_heads(heads, shape_of(method, bits, settings, "act"), 0, centering=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("kind", [None, *CODES])
@pytest.mark.parametrize("extra", EXTRA)
@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_scaled_tokens_are_those_of_scaled_channels(
    dtype: torch.dtype, tokens: int, kind: str | None, extra: str, offset: float
) -> None:
    code = code_for(kind, offset, extra)
    scaled = InputQuantizer(FEATURES, SEED, code, **EXTRA[extra])
    plain = InputQuantizer(FEATURES, SEED.seed, code, **EXTRA[extra])
    x = (gaussian(tokens, FEATURES, seed=4) + offset).to(dtype)
    expected = plain.floats(x.float() * FACTORS)
    assert relative_error(scaled.floats(x), expected) < (1e-5 if kind is None else 0.05)  # a block may be rounded up
    found = scaled.code_tokens(x).dequantized()
    assert relative_error(found, expected) < 0.05
    back = scaled.unrotate(scaled.rotate(x.float()))
    torch.testing.assert_close(back, x.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("extra", EXTRA)
def test_rows_that_meet_scaled_tokens_meet_tokens(extra: str) -> None:
    source, x, rows = InputQuantizer(FEATURES, SEED, None, **EXTRA[extra]), gaussian(5, FEATURES), gaussian(7, FEATURES)
    expected = source.rotate(x) @ rows.t()
    torch.testing.assert_close(x @ source.unrotate_rows(rows).t(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 4, 16, 40])
@pytest.mark.parametrize("kind", [None, "nested", "integer"])
@pytest.mark.parametrize("extra", EXTRA)
@pytest.mark.parametrize("resident", ["packed", "int8"])
def test_a_linear_multiplies_as_its_dequantized_weight(
    dtype: torch.dtype, tokens: int, kind: str | None, extra: str, resident: str
) -> None:
    source = InputQuantizer(FEATURES, SEED, code_for(kind, 0.0, extra), **EXTRA[extra])
    shape = shape_for_bits(4)
    rounded = codec_of(shape).quantize(Feedback(gaussian(24, FEATURES), None, None, 0.0), [24], shape, 0, 1)
    linear = NestedLinear(FEATURES, 24, False, source, rounded.codes[0], torch.float32)
    for name, tensor in rounded.tensors[0].items():
        setattr(linear, name, tensor)
    if resident == "int8":
        assert linear.hold_int8()
    x = gaussian(tokens, FEATURES, seed=6).to(dtype)
    expected = source.floats(x.float()) @ linear.values(0, 24).t()
    assert relative_error(linear(x).float(), expected) < (0.05 if kind or dtype != torch.float32 else 1e-4)
    gradient = linear.input_gradient(expected)
    assert relative_error(gradient, expected @ linear.dequantized()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 4, 16, 40])
def test_kernels_of_the_cpu_are_those_of_the_reference(dtype: torch.dtype, tokens: int) -> None:
    cpu, reference = of_family("cpu"), of_family("reference")
    x = gaussian(tokens, FEATURES, seed=6).to(dtype)
    near = 1e-5 if dtype != torch.bfloat16 else 5e-3
    found, expected = (kernels.rotate_tokens(x, FEATURES, SEED).float() for kernels in (cpu, reference))
    assert relative_error(found, expected) < near
    for seed in (SEED, SEED.seed):
        assert relative_error(cpu.rotate_tokens(x, FEATURES, seed).float(), expected) < near or seed is not SEED
    v, scale, _ = cpu.encode_tokens(x, FEATURES, SEED, shape_for_bits(4).with_multipliers((3, 4, 5, 6, 9)), 0.035)
    assert relative_error(v.float() * scale[:, None], expected) < 0.15
    v, scale = cpu.to_integers(x, FEATURES, SEED, 8, 1.0)
    assert relative_error(v.float() * scale[:, None], expected) < 0.02
    rows, row_scale = (
        torch.randint(-9, 9, (24, FEATURES), dtype=torch.int8),
        torch.ones(24).bfloat16().view(torch.int16),
    )
    products = [kernels.rotated_product(x, SEED, rows, row_scale, parts=2).float() for kernels in (cpu, reference)]
    assert relative_error(*products) < 1e-2
    sums = [
        kernels.int16_product(*kernels.to_int16(x, FEATURES, SEED), rows, row_scale, torch.float32)
        for kernels in (cpu, reference)
    ]
    assert relative_error(*sums) < 1e-3


def test_a_quantized_linear_of_a_kept_weight_gives_tokens_back() -> None:
    source = InputQuantizer(FEATURES, SEED, code_for("nested", 0.0, "plain"))
    linear = QuantizedLinear(FEATURES, 24, False, source, None, torch.float32)
    linear.weight = torch.nn.Parameter(gaussian(24, FEATURES, seed=8), requires_grad=False)
    x = gaussian(9, FEATURES, seed=6)
    assert relative_error(linear(x), x @ linear.weight.t()) < 0.3
