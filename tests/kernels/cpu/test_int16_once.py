"""Rotation, rounding and product in one call: to the bit what they give one after another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestquant_cli.kernels.cpu import instructions, int16_tensors, product
from nestquant_cli.kernels.cpu.dot_int16 import MOST
from nestquant_cli.kernels.device_kernels import of_family
from tests.families import gaussian
from tests.kernels.cpu.test_int16 import matrix

REFERENCE, CPU, SEED = of_family("reference"), of_family("cpu"), 5
KINDS = range(instructions.PLAIN + 1, instructions.kind() + 1)
MATRICES = st.tuples(
    st.sampled_from([1, 5, 7, 8, 9, 31, 33, 64, 200]), st.sampled_from([8, 24, 64, 72, 128, 576, 1536])
)

pytestmark = pytest.mark.skipif(not KINDS, reason="this processor has no instructions for int8 products")


@given(tokens=st.integers(0, 40), size=MATRICES, missing=st.sampled_from([0, 3]), threads=st.sampled_from([1, 2]))
@settings(max_examples=60, deadline=None)
def test_equal_to_the_steps_by_themselves(tokens: int, size: tuple[int, int], missing: int, threads: int) -> None:
    rows, order = size
    v, bits = matrix(rows, order)
    x = gaussian(tokens, order - missing, seed=tokens).bfloat16()
    x[1:2] = 0
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for kind in KINDS:
            with pytest.MonkeyPatch.context() as patch:
                for module in (product, int16_tensors):
                    patch.setattr(module, "kind", lambda kind=kind: kind)
                y = CPU.rotated_product(x, SEED, v, bits)
                steps = CPU.int16_product(*CPU.to_int16(x, order, SEED), v, bits, torch.bfloat16)
            assert torch.equal(y, steps)
    finally:
        torch.set_num_threads(before)


@given(
    tokens=st.integers(0, 70),
    size=MATRICES,
    narrow=st.booleans(),
    with_bias=st.booleans(),
    with_center=st.booleans(),
    threads=st.sampled_from([1, 2]),
)
@settings(max_examples=80, deadline=None)
def test_integers_equal_to_the_steps_by_themselves(
    tokens: int, size: tuple[int, int], narrow: bool, with_bias: bool, with_center: bool, threads: int
) -> None:
    rows, order = size
    v, bits = matrix(rows, order)
    values = torch.randint(-128, 128, (tokens, order), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    scale, dtype = gaussian(tokens, seed=tokens), torch.bfloat16 if narrow else torch.float32
    centered, shift = (gaussian(tokens, seed=2) > 0, 99 * gaussian(rows, seed=3)) if with_center else (None, None)
    further = gaussian(rows, seed=4) if with_bias else None, centered, shift
    expected = REFERENCE.integer_rows(values, scale, v, bits, dtype, *further)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for kind in KINDS:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(product, "kind", lambda kind=kind: kind)
                assert torch.equal(CPU.integer_rows(values, scale, v, bits, dtype, *further), expected)
        sums = CPU.integer_product(values, v)
        steps = CPU.scale_sums(sums, scale, bits.view(torch.bfloat16).float(), further[0], dtype, *further[1:])
        assert torch.equal(steps, expected)
    finally:
        torch.set_num_threads(before)


def test_a_token_has_the_same_product_in_any_company() -> None:
    v, bits = matrix(37, 192)
    x = gaussian(40, 192).bfloat16()
    together = CPU.rotated_product(x, SEED, v, bits)
    for few in range(1, MOST + 2):
        assert torch.equal(CPU.rotated_product(x[:few], SEED, v, bits), together[:few])


def test_parts_strides_and_what_is_not_finite() -> None:
    v, bits = matrix(20, 192)
    x = gaussian(3, 2 * 192).bfloat16()[:, ::2]
    x[1, 7] = float("nan")
    y = CPU.rotated_product(x, SEED, v, bits, 2)
    halves = [REFERENCE.rotate_tokens(half.float(), 96, SEED) for half in x.chunk(2, 1)]
    expected = CPU.int16_product(*CPU.to_int16(torch.cat(halves, 1), 192, None), v, bits, torch.bfloat16)
    assert y[1].isnan().all() and not y[[0, 2]].isnan().any()
    assert torch.allclose(y[[0, 2]].float(), expected[[0, 2]].float(), rtol=1e-2, atol=1e-3)
