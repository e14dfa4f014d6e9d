"""The Triton kernels against the reference: on the GPU where there is one, else in Triton's interpreter on the CPU.

The interpreter is chosen in tests/conftest.py, as it must be before triton is first imported.
"""

import pytest
import torch
from torch import Tensor

from nestquant_cli.e8.code import NestedCode, row_bytes
from nestquant_cli.kernels import for_device, has
from nestquant_cli.kernels.cpu import nested as cpu
from nestquant_cli.kernels.reference import nested as reference

pytest.importorskip("triton", reason="triton is not installed")

from nestquant_cli.kernels.gpu import nested as gpu
from nestquant_cli.kernels.gpu import product as gpu_product

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FOUR_BITS = NestedCode(q=13, multipliers=(3, 4, 5, 6, 9), word_bits=32)
CODES = [
    FOUR_BITS,
    NestedCode(q=2, multipliers=(1,), word_bits=16),
    NestedCode(q=3, multipliers=(1, 2, 3, 4, 5, 7, 9, 12, 20), word_bits=16),
    NestedCode(q=6, multipliers=(3, 4, 5), word_bits=24),
    NestedCode(q=9, multipliers=(3, 4, 5, 6, 8, 11), word_bits=28),
    NestedCode(q=14, multipliers=(3, 4, 5, 8), word_bits=33),
    NestedCode(q=13, multipliers=(2, 3), word_bits=57, limit=40),
    NestedCode(q=197, multipliers=(3, 4, 5, 6, 7, 8, 9, 10), word_bits=64, limit=32767),
    NestedCode(q=256, multipliers=(3,), word_bits=64, limit=32767),
    NestedCode(q=2, multipliers=(1, 2), word_bits=64, limit=32767),
]
each_code = pytest.mark.parametrize("code", CODES, ids=lambda code: f"q{code.q}-k{code.k}-{code.word_bits}bits")
each_int8_code = pytest.mark.parametrize(
    "code", [c for c in CODES if c.int8], ids=lambda c: f"q{c.q}-{c.word_bits}bits"
)


def random_words(rows: int, entries: int, code: NestedCode, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = rows, row_bytes(entries, code.word_bits)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(DEVICE)


def weight_words(rows: int, entries: int, code: NestedCode) -> Tensor:
    """Words of a Gaussian weight: every entry is within the limit of the code."""
    x, scale = gaussian(rows, entries, seed=5).cpu(), scales(rows, code).cpu()
    v, index, _ = cpu.quantize(x, scale, code)
    return cpu.pack(v, index, code).to(DEVICE)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def scales(rows: int, code: NestedCode) -> Tensor:
    """Under which nearly all blocks of a unit Gaussian fit the code."""
    spread = 1 + 0.1 * torch.rand(rows, generator=torch.Generator().manual_seed(1))
    return (3.5 / (code.q * code.multipliers[-1]) * spread).to(DEVICE)


def error_of(x: Tensor, scale: Tensor, v: Tensor) -> Tensor:
    """Squared error of each block, (rows, blocks) float64."""
    difference = x.double() - scale.double()[:, None] * v.double()
    return difference.view(x.shape[0], -1, 8).square().sum(-1)


@each_code
@pytest.mark.parametrize("rows, blocks", [(1, 1), (3, 37), (7, 130)])
def test_any_words_unpack_to_the_bit(code: NestedCode, rows: int, blocks: int) -> None:
    """Also words that no encoder writes: an index beyond k, digits of an overloaded point."""
    words = random_words(rows, 8 * blocks, code)
    words[-1, -8:] = 255
    got = gpu.unpack(words, 8 * blocks, code)
    expected = reference.unpack(words, 8 * blocks, code)
    assert got.dtype == expected.dtype and torch.equal(got, expected)


@each_code
def test_quantize_errs_as_the_reference(code: NestedCode) -> None:
    x, scale = gaussian(5, 8 * 27), scales(5, code)
    x[3] *= 30  # clipped
    x[4] = 0
    v, index, clipped = gpu.quantize(x, scale, code)
    expected, expected_index, expected_clipped = reference.quantize(x, scale, code)
    assert v.dtype == expected.dtype and index.dtype == torch.uint8 and clipped == expected_clipped > 0
    error, expected_error = error_of(x, scale, v), error_of(x, scale, expected)
    torch.testing.assert_close(error[:3], expected_error[:3], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(error[3], expected_error[3], rtol=0.02, atol=0)  # a step of clipping hangs on a last bit
    assert (index == expected_index).float().mean() > 0.999
    assert torch.equal(v[4], torch.zeros_like(v[4]))
    packed = gpu.pack(v, index, code)
    assert torch.equal(packed, reference.pack(v, index, code))
    assert torch.equal(gpu.unpack(packed, x.shape[1], code), v)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_a_block_that_is_not_finite_becomes_zeros(value: float) -> None:
    x, scale = gaussian(4, 40).clamp(-2, 2), scales(4, FOUR_BITS)
    expected, _, clipped_before = gpu.quantize(x, scale, FOUR_BITS)
    x[2, 9] = value
    v, index, clipped = gpu.quantize(x, scale, FOUR_BITS)
    assert clipped == clipped_before + 1 and index.max() < FOUR_BITS.k
    bad = torch.zeros(4, 40, dtype=torch.bool)
    bad[2, 8:16] = True
    assert torch.equal(v.cpu()[~bad], expected.cpu()[~bad])
    assert not v.cpu()[bad].any() or value == 3e38


def test_ties_of_coarse_inputs_are_lattice_points() -> None:
    x = (torch.randint(-24, 25, (60, 16), generator=torch.Generator().manual_seed(0)).float() * 1.5).to(DEVICE)
    ones = torch.ones(60, device=DEVICE)
    v, index, _ = gpu.quantize(x, ones, FOUR_BITS)
    assert torch.equal(gpu.unpack(gpu.pack(v, index, FOUR_BITS), 16, FOUR_BITS), v)
    expected = reference.quantize(x, ones, FOUR_BITS)[0]
    torch.testing.assert_close(error_of(x, ones, v), error_of(x, ones, expected))


@pytest.mark.parametrize("q, limit", [(2, 127), (13, 127), (60, 32767)])
def test_block_errors_agree(q: int, limit: int) -> None:
    x, multipliers = gaussian(70, 8, seed=q), torch.arange(1, 9)
    unit = torch.linspace(0.5, 2.5, 8) / (2 * q)
    got = gpu.block_errors(x, unit, multipliers, q, limit).cpu()
    expected = reference.block_errors(x, unit, multipliers, q, limit).cpu()
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-7)
    assert torch.isinf(got).any() and torch.isfinite(got).any()


def test_layouts_types_and_empty_tensors() -> None:
    code, x, scale = FOUR_BITS, gaussian(6, 80), scales(6, FOUR_BITS)
    v, index, _ = gpu.quantize(x, scale, code)
    packed = gpu.pack(v, index, code)
    assert torch.equal(gpu.quantize(x.T.contiguous().T, scale.repeat(2)[:6], code)[0], v)
    assert torch.equal(gpu.pack(v.T.contiguous().T, index.T.contiguous().T, code), packed)
    for padding in (1, 4):  # rows that do not begin at a multiple of four bytes
        wider = torch.nn.functional.pad(packed, (padding, 1))
        assert torch.equal(gpu.unpack(wider[:, padding:-1], 80, code), v)
        assert torch.equal(gpu.unpack(wider[:1, padding:-1], 80, code), v[:1])  # one row counts as contiguous
    halves = x.bfloat16()
    assert torch.equal(gpu.quantize(halves, scale, code)[0], gpu.quantize(halves.float(), scale, code)[0])
    none, no_index, clipped = gpu.quantize(x[:0], scale[:0], code)
    assert none.shape == (0, 80) and clipped == 0 and gpu.pack(none, no_index, code).shape == (0, 40)
    with pytest.raises(ValueError, match="bytes, not 9"):
        gpu.unpack(packed[:, :9], 16, code)


@each_int8_code
@pytest.mark.parametrize("tokens, rows, blocks", [(1, 1, 1), (3, 70, 37), (17, 65, 16)])
def test_the_integer_product_is_exact(code: NestedCode, tokens: int, rows: int, blocks: int) -> None:
    check_integer_product(code, tokens, rows, blocks)


@pytest.mark.parametrize("tokens, rows, blocks", [(gpu_product.FUSED_TOKENS + 1, 3, 9), (130, 131, 7)])
def test_the_integer_product_of_many_tokens_is_exact(tokens: int, rows: int, blocks: int) -> None:
    check_integer_product(FOUR_BITS, tokens, rows, blocks)


def check_integer_product(code: NestedCode, tokens: int, rows: int, blocks: int) -> None:
    words = random_words(rows, 8 * blocks, code)
    a = torch.randint(-127, 128, (tokens, 8 * blocks), generator=torch.Generator().manual_seed(2), dtype=torch.int8)
    scale_a, row_scale = gaussian(tokens, seed=3), gaussian(rows, seed=4).bfloat16()
    y = gpu.product(words, row_scale, a.to(DEVICE), scale_a, code)
    sums = a.long() @ reference.unpack(words, 8 * blocks, code).cpu().long().T
    expected = sums.float() * scale_a.cpu()[:, None] * row_scale.cpu().float()
    assert y.dtype == torch.float32 and torch.equal(y.cpu(), expected)


@each_code
@pytest.mark.parametrize("tokens, rows, blocks", [(1, 1, 1), (1, 7, 150), (3, 5, 65)])
def test_product_one_is_close_to_float64(code: NestedCode, tokens: int, rows: int, blocks: int) -> None:
    words, x = weight_words(rows, 8 * blocks, code), gaussian(tokens, 8 * blocks)
    row_scale = gaussian(rows, seed=4).bfloat16()
    y = gpu.product_one(words, row_scale, x, code)
    v = reference.unpack(words, 8 * blocks, code).double()
    expected = x.double() @ v.T * row_scale.double()
    size = x.double().abs() @ v.abs().T * row_scale.double().abs()  # what rounding errors are relative to
    assert y.shape == (tokens, rows) and ((y - expected).abs() <= 1e-5 * size).all()


def test_product_one_splits_the_input_dimension() -> None:
    """A weight of one row leaves only the input dimension to share; the parts add up, and always alike."""
    words, x, one = weight_words(1, 8 * 700, FOUR_BITS), gaussian(1, 8 * 700), torch.ones(1, device=DEVICE)
    y = gpu.product_one(words, one, x, FOUR_BITS)
    expected = x.double() @ reference.unpack(words, 8 * 700, FOUR_BITS).double().T
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-2)
    assert torch.equal(gpu.product_one(words, one, x, FOUR_BITS), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens, rows, blocks", [(5, 70, 37), (gpu_product.FUSED_TOKENS + 1, 20, 5)])
def test_product_many_is_close_to_float64(dtype: torch.dtype, tokens: int, rows: int, blocks: int) -> None:
    words, x = weight_words(rows, 8 * blocks, FOUR_BITS), gaussian(tokens, 8 * blocks).to(dtype)
    row_scale = gaussian(rows, seed=4).bfloat16()
    y = gpu.product_many(words, row_scale, x, FOUR_BITS)
    expected = x.double() @ reference.unpack(words, 8 * blocks, FOUR_BITS).double().T * row_scale.double()
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-3)


def test_no_tokens_and_no_rows() -> None:
    words, one = random_words(3, 16, FOUR_BITS), torch.ones(3, device=DEVICE)
    x = gaussian(0, 16)
    assert gpu.product(words, one, x.to(torch.int8), x[:, 0], FOUR_BITS).shape == (0, 3)
    assert gpu.product_one(words, one, x, FOUR_BITS).shape == (0, 3)
    assert gpu.product_many(words[:0], one[:0], gaussian(2, 16).bfloat16(), FOUR_BITS).shape == (2, 0)


def test_shapes_and_types_that_do_not_fit_are_refused() -> None:
    words, one, wide = random_words(3, 16, FOUR_BITS), torch.ones(3, device=DEVICE), CODES[-1]
    a = torch.zeros(2, 16, dtype=torch.int8, device=DEVICE)
    with pytest.raises(ValueError, match="do not multiply"):
        gpu.product_one(words, one, gaussian(2, 24), FOUR_BITS)
    with pytest.raises(ValueError, match="no exact product"):
        gpu.product(words, one, a.float(), one[:2], FOUR_BITS)
    with pytest.raises(ValueError, match="no product"):
        gpu.product_many(random_words(3, 16, wide), one, a.bfloat16(), wide)
    with pytest.raises(ValueError, match="more than"):
        gpu.product_one(words, one, gaussian(gpu_product.FEW_TOKENS + 1, 16), FOUR_BITS)


def test_for_device() -> None:
    cuda = torch.device("cuda", 0)
    assert for_device(cuda).quantize is gpu.quantize and for_device(cuda).product_many is gpu_product.product_many
    assert has(cuda, "product") and not has(cuda, "attend") and not has(torch.device("cpu"), "product")
