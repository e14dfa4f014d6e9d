"""Int8 rows times tokens of 16 bits: exact sums, the same with all instructions, and errors far below bfloat16's."""

from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nestquant_cli.kernels.contract.constants import LARGEST_INT16, LEAST_SIZE
from nestquant_cli.kernels.cpu import instructions, int16_tensors
from nestquant_cli.kernels.cpu.inputs import plan_of
from nestquant_cli.kernels.cpu.int16 import round_few
from nestquant_cli.kernels.device_kernels import of_family
from nestquant_cli.kernels.reference import int16 as reference
from tests.families import gaussian, relative_error

REFERENCE, CPU = of_family("reference"), of_family("cpu")
KINDS = range(instructions.kind() + 1)
SEED = 3


def matrix(rows: int, order: int) -> tuple[Tensor, Tensor]:
    """Int8 rows with the extremes, and the bits of their scales."""
    v = torch.randint(-128, 128, (rows, order), dtype=torch.int8, generator=torch.Generator().manual_seed(rows))
    v[0], v[-1] = -128, 127
    return v, (0.01 + torch.arange(rows) / 7).bfloat16().view(torch.int16)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(int16_tensors, "kind", lambda: request.param)
    found: int = request.param
    return found


def product(x: Tensor, v: Tensor, bits: Tensor, dtype: torch.dtype, kernels: Any = CPU) -> Tensor:
    y: Tensor = kernels.int16_product(*kernels.to_int16(x, v.shape[1], None), v, bits, dtype)
    return y


@given(tokens=st.integers(0, 40), rows=st.integers(1, 70), blocks=st.integers(1, 40), narrow=st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_kind_is_the_reference_to_the_bit(tokens: int, rows: int, blocks: int, narrow: bool) -> None:
    v, bits = matrix(rows, 8 * blocks)
    x = gaussian(tokens, 8 * blocks, seed=tokens)
    x[: tokens // 2] = x[: tokens // 2].sign()  # the largest digits
    dtype = torch.bfloat16 if narrow else torch.float32
    expected = product(x, v, bits, dtype, REFERENCE)
    with pytest.MonkeyPatch.context() as patch:
        for each in KINDS:
            patch.setattr(int16_tensors, "kind", lambda each=each: each)
            y = product(x, v, bits, dtype)
            assert y.dtype == dtype and torch.equal(y, expected)


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("order", [192, 576, 200])  # 200 has a factor that no compiled loop rotates
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_error_is_that_of_rounding_tokens(order: int, dtype: torch.dtype) -> None:
    v, bits = matrix(33, order)
    x = gaussian(19, order - 5, seed=1).to(dtype)
    y = CPU.int16_product(*CPU.to_int16(x, order, SEED), v, bits, torch.float32)
    rotated, scale = REFERENCE.rotate_tokens(x, order, SEED).double(), bits.view(torch.bfloat16).double()
    exact = rotated @ v.double().t() * scale
    step = rotated.abs().amax(1, keepdim=True) / LARGEST_INT16
    bound = 0.51 * step * v.double().abs().sum(1) * scale + 1e-6 * rotated.abs() @ v.double().abs().t() * scale
    assert ((y.double() - exact).abs() <= bound).all()
    narrow = (rotated.bfloat16().double() @ v.double().t()) * scale
    assert relative_error(y, exact) < relative_error(narrow, exact) / 20


@pytest.mark.usefixtures("kind")
def test_tokens_that_are_not_finite_or_nothing() -> None:
    v, bits = matrix(40, 192)
    x = gaussian(20, 192)
    x[2, 5], x[3, 7], x[17, 0] = torch.nan, torch.inf, -torch.inf
    x[4], x[5], x[6] = 0, LEAST_SIZE / 100, 3e36
    for seed in (None, SEED):
        y = CPU.int16_product(*CPU.to_int16(x, 192, seed), v, bits, torch.bfloat16)
        others = [i for i in range(20) if i not in (2, 3, 17)]
        assert y[[2, 3, 17]].isnan().all() and not y[others].isnan().any()
        assert (y[4:6] == 0).all()
        assert torch.equal(y[7:16], CPU.int16_product(*CPU.to_int16(x[7:16], 192, seed), v, bits, torch.bfloat16))


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("counts", [[3], [1, 20, 0, 16, 5], [17, 33]])
def test_experts_are_multiplied_where_they_lie(counts: list[int]) -> None:
    order, ends = 136, list(accumulate(counts))
    weights = [matrix(rows, order) for rows in (37,) * len(counts)]
    x = gaussian(9, order, seed=2)
    taken = torch.randint(9, (ends[-1],), generator=torch.Generator().manual_seed(0))
    v, bits = ([part[i] for part in weights] for i in (0, 1))
    y = int16_tensors.experts_by_int16(x, taken, ends, v, bits, torch.bfloat16)
    for matrices, scales, end, count in zip(v, bits, ends, counts, strict=True):
        part = slice(end - count, end)
        tokens, scale = reference.round_rotated(x[taken[part]])
        assert torch.equal(y[part], reference.int16_product(tokens, scale, matrices, scales, torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_many_pairs_of_experts_agree_with_few(dtype: torch.dtype) -> None:
    v, bits = matrix(64, 192)
    x, taken = gaussian(12, 192), torch.arange(12)
    many = CPU.experts_product(x, taken, [12], [v], [bits], dtype)
    few = torch.cat([CPU.experts_product(x, taken[i : i + 1], [1], [v], [bits], dtype) for i in range(12)])
    assert relative_error(many, few) < (1e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.usefixtures("two_threads")
def test_threads_change_nothing() -> None:
    v, bits = matrix(700, 576)
    x = gaussian(70, 576).bfloat16()
    shared = CPU.int16_product(*CPU.to_int16(x, 576, SEED), v, bits, torch.bfloat16)
    torch.set_num_threads(1)
    assert torch.equal(shared, CPU.int16_product(*CPU.to_int16(x, 576, SEED), v, bits, torch.bfloat16))


@pytest.mark.skipif(instructions.kind() != instructions.AMX, reason="torch multiplies with these tiles, too")
def test_torchs_own_products_are_not_disturbed() -> None:
    v, bits = matrix(64, 192)
    x, weight = gaussian(64, 192).bfloat16(), gaussian(48, 192, seed=1).bfloat16()
    expected = torch.nn.functional.linear(x, weight)
    for _ in range(3):
        product(x, v, bits, torch.bfloat16)
        assert torch.equal(torch.nn.functional.linear(x, weight), expected)


@pytest.mark.parametrize("order", [8, 72, 192, 576, 1536])
def test_a_few_tokens_have_the_digits_that_a_tile_gives_them(order: int) -> None:
    """To the bit: a product that is fused with a sum differs in one entry of some thousand, so there are many."""
    plan = plan_of(order, SEED)
    assert plan is not None
    x = gaussian(160, order).bfloat16()
    x[3], x[5, 1], x[6, 2] = 0, float("inf"), float("nan")
    digits, scale = CPU.to_int16(x, order, SEED)
    of_token = digits.view(10, 2, -1, 16).permute(0, 3, 1, 2).reshape(160, 2, -1).numpy()
    few, few_scale = np.empty_like(of_token), np.empty(160, np.float32)
    round_few(x.view(torch.uint16).numpy(), plan, few, few_scale)
    assert np.array_equal(few, of_token) and np.array_equal(few_scale, scale.numpy(), equal_nan=True)
