"""Tokens rounded to integers by the compiled pass, against plain torch and against the code's own rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestquant_cli.codecs.integer.code import IntegerCode
from nestquant_cli.kernels.device_kernels import of_family
from nestquant_cli.rotation.transform import rotation

SEED = 7
CPU, REFERENCE = (of_family(family).to_integers for family in ("cpu", "reference"))


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 40),
    order=st.sampled_from([8, 40, 64, 96, 576]),
    missing=st.integers(0, 7),
    bits=st.integers(2, 8),
    clip=st.sampled_from([1.0, 0.98, 0.5]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_it_gives_what_torch_gives_but_for_ties(
    tokens: int, order: int, missing: int, bits: int, clip: float, dtype: torch.dtype
) -> None:
    x = torch.randn(tokens, order - missing, generator=torch.Generator().manual_seed(tokens)).to(dtype)
    v, scale = CPU(x, order, SEED, bits, clip)
    wanted, wanted_scale = REFERENCE(x, order, SEED, bits, clip)
    assert (v.shape, v.dtype, scale.shape) == ((tokens, order), torch.int8, (tokens,))
    torch.testing.assert_close(scale, wanted_scale, rtol=2**-7, atol=0)  # a rotation's last bit may move a bfloat16
    same = scale == wanted_scale
    assert same.float().mean() > 0.9 or not tokens
    difference = (v[same].int() - wanted[same].int()).abs()
    assert difference.numel() == 0 or (int(difference.max()) <= 1 and float(difference.float().mean()) < 0.01)
    assert v.numel() == 0 or -(1 << (bits - 1)) <= int(v.min()) <= int(v.max()) < 1 << (bits - 1)


@pytest.mark.parametrize("tokens", [3, 20])
def test_tokens_of_zeros_and_those_that_are_not_finite(tokens: int) -> None:
    x = torch.randn(tokens, 64)
    x[0], x[1, 5], x[2, 9] = 0, float("inf"), float("nan")
    for encode in (CPU, REFERENCE):
        v, scale = encode(x, 64, SEED, 8, 1.0)
        assert scale[0] == 1 and not v[0].any()
        assert scale.isnan().tolist() == [False, True, True] + [False] * (tokens - 3)


@pytest.mark.parametrize("tokens", [1, 33])
@pytest.mark.parametrize("seed", [SEED, None])
def test_a_code_rounds_tokens_as_it_rounds_rotated_rows(tokens: int, seed: int | None) -> None:
    code, x = IntegerCode(8, clip=0.96), torch.randn(tokens, 96)
    rounded, wanted = code.round_tokens(x, 96, seed), code.round(rotation(96, seed).apply(x))
    assert rounded.scale is not None and rounded.values.dtype == torch.int8
    error = (rounded.dequantized() - wanted.dequantized()).abs().amax(1)
    assert bool((error <= 1.1 * rounded.scale).all()) and float((error > 1e-4).float().mean()) < 0.2
