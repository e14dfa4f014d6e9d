"""The reference's products against dense float64 arithmetic, and the CPU's kernels against the reference."""

import pytest
import torch
import torch.nn.functional as F

from nestquant_cli.e8.code import NestedCode
from nestquant_cli.kernels.device_kernels import of_family
from nestquant_cli.kernels.reference import products
from tests.families import gaussian, relative_error

CODE = NestedCode(13, (3, 4, 5, 6, 9), 32)
WIDE = NestedCode(46, (3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17), 48, 32767)
ROWS, ENTRIES, SEED = 21, 192, 3
REFERENCE, CPU = of_family("reference"), of_family("cpu")
SCALE = (0.01 + 0.001 * torch.arange(ROWS)).bfloat16()


def packed(code: NestedCode) -> tuple[torch.Tensor, torch.Tensor]:
    """Words (rows, bytes) of a Gaussian matrix and the integers that they stand for."""
    v, index, _ = REFERENCE.quantize(gaussian(ROWS, ENTRIES), torch.full((ROWS,), 0.05), code)
    return REFERENCE.pack(v, index, code), v


@pytest.mark.parametrize("code", [CODE, WIDE], ids=["int8", "int16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_words_times_floats(code: NestedCode, dtype: torch.dtype, tokens: int) -> None:
    words, v = packed(code)
    x = gaussian(tokens, ENTRIES, seed=1).to(dtype)
    y = products.product_one(words, SCALE, x, code)
    expected = F.linear(x.double(), v.double()) * SCALE.double()
    assert y.shape == (tokens, ROWS) and y.dtype == torch.float32
    if tokens <= CPU.limits.dot_tokens:
        torch.testing.assert_close(CPU.product_one(words, SCALE, x, code), y, rtol=1e-5, atol=1e-5)
    if tokens:
        assert relative_error(y, expected) < 1e-6
    if dtype == torch.bfloat16 and code.int8:
        assert torch.equal(products.product_many(words, SCALE, x, code), y)


def test_words_times_integers_are_exact() -> None:
    words, v = packed(CODE)
    tokens = torch.randint(-127, 128, (5, ENTRIES), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    scale = torch.arange(1, 6).float()
    y = products.product(words, SCALE, tokens, scale, CODE)
    sums = (tokens.long() @ v.long().t()).float()
    assert torch.equal(y, sums * scale[:, None] * SCALE.float())
    with pytest.raises(ValueError, match="no exact product"):
        products.product(words, SCALE, tokens, scale, WIDE)
    with pytest.raises(ValueError, match="no product of"):
        products.product_many(words, SCALE, tokens.float(), CODE)
    with pytest.raises(ValueError, match="more than one"):
        CPU.product_one(words, SCALE, tokens.float(), CODE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("features", [ENTRIES, ENTRIES - 5])
def test_int8_rows_times_tokens_that_are_rotated_on_the_way(dtype: torch.dtype, features: int) -> None:
    v, x = packed(CODE)[1], gaussian(3, features, seed=2).to(dtype)
    bits = SCALE.view(torch.int16)
    y = products.rotated_product(x, SEED, v, bits)
    assert y.dtype == dtype
    assert relative_error(CPU.rotated_product(x, SEED, v, bits), y) < 1e-2
    if features == ENTRIES:
        parts = products.rotated_product(x, SEED, v, bits, 2)
        assert relative_error(CPU.rotated_product(x, SEED, v, bits, 2), parts) < 1e-2
        halves = zip(x.chunk(2, 1), v.double().chunk(2, 1), strict=True)
        sums = [REFERENCE.rotate_tokens(half, ENTRIES // 2, SEED).double() @ rows.t() for half, rows in halves]
        assert relative_error(parts, (sums[0] + sums[1]) * SCALE.double()) < 1e-2
    rotated = REFERENCE.rotate_tokens(x, ENTRIES, SEED)
    assert relative_error(y, F.linear(rotated.double(), v.double()) * SCALE.double()) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ends", [[1], [1, 2], [2, 5, 6]])
def test_int8_rows_of_experts_times_their_tokens(dtype: torch.dtype, ends: list[int]) -> None:
    whole = packed(CODE)[1]
    v = [whole[7 * expert : 7 * expert + 7] for expert in range(len(ends))]
    bits = list(SCALE.view(torch.int16).split(7))[: len(ends)]
    x, taken = gaussian(3, ENTRIES, seed=2), torch.tensor([2, 0, 1, 1, 2, 0])[: ends[-1]]
    y = products.experts_product(x, taken, ends, v, bits, dtype)
    assert y.dtype == dtype and y.shape == (ends[-1], 7)
    assert relative_error(CPU.experts_product(x, taken, ends, v, bits, dtype), y) < 1e-2
    for expert, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        expected = F.linear(x[taken[start:end]].double(), v[expert].double()) * SCALE[7 * expert : 7 * expert + 7]
        assert relative_error(y[start:end], expected) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_of_what_experts_gave(dtype: torch.dtype) -> None:
    parts = [gaussian(count, 24, seed=count).to(dtype) for count in (1, 3, 2)]
    order, weights = torch.tensor([3, 0, 5, 7, 1, 6]), gaussian(4, 2, seed=9).abs()  # token 2 has one, token 1 one
    y = products.experts_sum(parts, order, weights)
    expected = torch.zeros(4, 24, dtype=torch.float64)
    for place, row in zip(order.tolist(), torch.cat(parts), strict=True):
        expected[place // 2] += row.double() * weights.view(-1)[place]
    assert y.dtype == dtype and relative_error(y, expected) < 1e-2
    found = CPU.experts_sum(parts, order, weights.to(torch.bfloat16 if dtype == torch.bfloat16 else torch.float32))
    assert found.dtype == dtype and relative_error(found, expected) < 1e-2


def test_which_orders_are_rotated_in_one_pass() -> None:
    assert CPU.rotates(192, SEED) and not CPU.rotates(200, SEED)  # 25 is too large a factor
    assert not REFERENCE.rotates(192, SEED)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales_after_integer_sums(bias: bool, shifted: bool, dtype: torch.dtype) -> None:
    sums = torch.arange(-40, 40, dtype=torch.int32).view(4, 20) * 1001
    token_scale, row_scale, b = gaussian(4, seed=1).abs(), gaussian(20, seed=2).abs(), gaussian(20, seed=3)
    centered, shift = torch.tensor([True, False, True, False]), gaussian(20, seed=4)
    after = (centered, shift) if shifted else (None, None)
    arguments = sums, token_scale, row_scale, b if bias else None, dtype, *after
    y = products.scale_sums(*arguments)
    expected = sums.double() * token_scale.double()[:, None]
    expected = expected + centered[:, None] * shift.double() if shifted else expected
    expected = expected * row_scale.double() + (b.double() if bias else 0)
    assert y.dtype == dtype and relative_error(y, expected) < (1e-6 if dtype == torch.float32 else 1e-2)
    assert relative_error(CPU.scale_sums(*arguments), y) < (1e-6 if dtype == torch.float32 else 1e-2)
