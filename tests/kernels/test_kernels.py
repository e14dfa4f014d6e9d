"""The contract, for every implementation that runs here."""

import pytest
import torch
from torch import Tensor

from nestquant_cli.e8.code import NestedCode, row_bytes
from nestquant_cli.e8.nearest import nearest_point
from nestquant_cli.e8.voronoi import reduce
from nestquant_cli.kernels import Kernels, for_device
from nestquant_cli.kernels.cpu import nested as cpu
from nestquant_cli.kernels.reference import nested as reference

CODES = [
    NestedCode(q=2, multipliers=(1,), word_bits=16),
    NestedCode(q=3, multipliers=(1, 2, 3, 4, 5, 7, 9, 12, 20), word_bits=16),
    NestedCode(q=9, multipliers=(3, 4, 5, 6, 8, 11), word_bits=28),
    NestedCode(q=13, multipliers=(3, 4, 5, 6, 9), word_bits=32),
    NestedCode(q=14, multipliers=(3, 4, 5, 8), word_bits=33),
    NestedCode(q=13, multipliers=(2, 3), word_bits=57, limit=40),
    NestedCode(q=197, multipliers=(3, 4, 5, 6, 7, 8, 9, 10), word_bits=64, limit=32767),
    NestedCode(q=256, multipliers=(3,), word_bits=64, limit=32767),
    NestedCode(q=2, multipliers=(1, 2), word_bits=64, limit=32767),
]
KERNELS = [reference, cpu]
each_code = pytest.mark.parametrize("code", CODES, ids=lambda code: f"q{code.q}-k{code.k}-{code.word_bits}bits")
each_kernel = pytest.mark.parametrize("kernels", KERNELS, ids=lambda module: module.__name__.rsplit(".", 1)[-1])


def gaussian(rows: int, entries: int, code: NestedCode, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of a unit Gaussian and scales under which nearly all blocks fit the code."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, entries, generator=generator)
    scale = 3.5 / (code.q * code.multipliers[-1]) * (1 + 0.1 * torch.rand(rows, generator=generator))
    return x, scale


def random_bytes(rows: int, entries: int, code: NestedCode) -> Tensor:
    generator = torch.Generator().manual_seed(code.word_bits)
    return torch.randint(0, 256, (rows, row_bytes(entries, code.word_bits)), dtype=torch.uint8, generator=generator)


def error_of(x: Tensor, scale: Tensor, v: Tensor) -> Tensor:
    """Squared error of each block, (rows, blocks) float64."""
    difference = x.double() - scale.double()[:, None] * v.double()
    return difference.view(x.shape[0], x.shape[1] // 8, 8).square().sum(-1)


@each_kernel
@each_code
@pytest.mark.parametrize("rows, blocks", [(1, 1), (3, 7), (2, 9), (5, 65)])
def test_quantize_pack_unpack(kernels: Kernels, code: NestedCode, rows: int, blocks: int) -> None:
    x, scale = gaussian(rows, 8 * blocks, code)
    v, index, clipped = kernels.quantize(x, scale, code)
    assert v.dtype == (torch.int8 if code.limit <= 127 else torch.int16)
    assert v.shape == x.shape and index.shape == (rows, blocks) and index.dtype == torch.uint8
    assert v.int().abs().max() <= code.limit and index.max() < code.k and 0 <= clipped <= rows * blocks
    packed = kernels.pack(v, index, code)
    assert packed.dtype == torch.uint8 and packed.shape == (rows, row_bytes(8 * blocks, code.word_bits))
    unpacked = kernels.unpack(packed, 8 * blocks, code)
    assert unpacked.dtype == v.dtype
    assert torch.equal(unpacked, v)


@each_code
def test_unpack_is_bit_identical_on_any_bytes(code: NestedCode) -> None:
    """Also for words that no encoder writes: an index beyond k, digits of an overloaded point."""
    for rows, blocks in ((1, 1), (3, 37), (7, 130)):
        packed = random_bytes(rows, 8 * blocks, code)
        assert torch.equal(cpu.unpack(packed, 8 * blocks, code), reference.unpack(packed, 8 * blocks, code))
    full = torch.full_like(packed, 255)
    assert torch.equal(cpu.unpack(full, 8 * blocks, code), reference.unpack(full, 8 * blocks, code))


@each_code
def test_quantize_agrees_with_the_reference(code: NestedCode) -> None:
    x, scale = gaussian(40, 8 * 37, code)
    x[3] *= 30  # clipped
    x[4] = 0
    v, index, clipped = cpu.quantize(x, scale, code)
    expected, expected_index, expected_clipped = reference.quantize(x, scale, code)
    assert clipped == expected_clipped > 0
    error, expected_error = error_of(x, scale, v), error_of(x, scale, expected)
    torch.testing.assert_close(error, expected_error, rtol=1e-4, atol=1e-6)
    assert (index == expected_index).float().mean() > 0.999
    packed = cpu.pack(v, index, code)
    assert torch.equal(packed, reference.pack(v, index, code))
    assert torch.equal(v[4], torch.zeros_like(v[4]))


@each_kernel
@pytest.mark.parametrize("code", [CODES[2], CODES[3], CODES[5]], ids=str)
def test_the_multiplier_of_least_true_error_is_chosen(kernels: Kernels, code: NestedCode) -> None:
    x, scale = gaussian(50, 64, code, seed=1)
    blocks = (x.double() / scale.double()[:, None]).view(-1, 8)
    errors = []
    for m in code.multipliers:
        u = nearest_point(blocks / (2 * m))
        held = (reduce(u, code.q) == u).all(-1) & (m * u.abs().amax(-1) <= code.limit)
        errors.append((blocks - m * u).square().sum(-1).masked_fill(~held, torch.inf))
    least = torch.stack(errors).amin(0).view(50, 8)
    v, index, clipped = kernels.quantize(x, scale, code)
    held = torch.isfinite(least)
    assert clipped == int((~held).sum())
    true_error = error_of(x, scale, v) / scale.double()[:, None].square()
    torch.testing.assert_close(true_error[held], least[held], rtol=1e-4, atol=1e-4)
    chosen = torch.stack(errors).view(-1, 50, 8).gather(0, index.long()[None])[0]
    torch.testing.assert_close(chosen[held], least[held], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("q, limit", [(2, 127), (13, 127), (60, 32767)])
def test_block_errors_agree(q: int, limit: int) -> None:
    x = torch.randn(70, 8, generator=torch.Generator().manual_seed(q))
    multipliers = torch.arange(1, 9)
    scales = torch.linspace(0.5, 2.5, 8) / (2 * q)
    got = cpu.block_errors(x, scales, multipliers, q, limit)
    expected = reference.block_errors(x, scales, multipliers, q, limit)
    assert got.shape == (70, 8) and got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-7)
    assert torch.isinf(got).any() and torch.isfinite(got).any()


@each_kernel
def test_ties_of_coarse_inputs_are_lattice_points(kernels: Kernels) -> None:
    """Entries on a coarse grid round with many ties; the result must still survive packing."""
    code = CODES[3]
    x = torch.randint(-24, 25, (300, 16), generator=torch.Generator().manual_seed(0)).float() * 1.5
    v, index, _ = kernels.quantize(x, torch.ones(300), code)
    assert torch.equal(kernels.unpack(kernels.pack(v, index, code), 16, code), v)
    expected = reference.quantize(x, torch.ones(300), code)[0]
    torch.testing.assert_close(error_of(x, torch.ones(300), v), error_of(x, torch.ones(300), expected))


@each_kernel
def test_other_layouts_and_types(kernels: Kernels) -> None:
    code = CODES[3]
    x, scale = gaussian(6, 80, code)
    v, index, _ = kernels.quantize(x, scale, code)
    packed = kernels.pack(v, index, code)
    transposed = x.T.contiguous().T
    wider = torch.cat([x, x], dim=1)[:, :80]
    for other in (transposed, wider):
        assert torch.equal(kernels.quantize(other, scale.repeat(2)[:6], code)[0], v)
    assert torch.equal(
        kernels.quantize(x, scale[:1].expand(6), code)[0], kernels.quantize(x, scale[:1].repeat(6), code)[0]
    )
    assert torch.equal(kernels.pack(v.T.contiguous().T, index.T.contiguous().T, code), packed)
    assert torch.equal(kernels.unpack(torch.cat([packed, packed], dim=1)[:, : packed.shape[1]], 80, code), v)
    halves = x.to(torch.bfloat16)
    assert torch.equal(kernels.quantize(halves, scale, code)[0], kernels.quantize(halves.float(), scale, code)[0])


@each_kernel
@each_code
def test_no_rows(kernels: Kernels, code: NestedCode) -> None:
    v, index, clipped = kernels.quantize(torch.zeros(0, 24), torch.zeros(0), code)
    assert v.shape == (0, 24) and index.shape == (0, 3) and clipped == 0
    packed = kernels.pack(v, index, code)
    assert packed.shape == (0, row_bytes(24, code.word_bits))
    assert kernels.unpack(packed, 24, code).shape == (0, 24)
    errors = kernels.block_errors(torch.zeros(0, 8), torch.ones(2), torch.tensor([1, 2]), code.q, code.limit)
    assert errors.shape == (0, 2)


@each_kernel
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_a_block_that_is_not_finite_becomes_zeros(kernels: Kernels, value: float) -> None:
    """It counts as clipped and leaves its neighbours alone; a huge finite block is clipped but not lost."""
    code = CODES[3]
    x, scale = gaussian(4, 40, code)
    x = x.clamp(-2, 2)
    expected, _, clipped_before = kernels.quantize(x, scale, code)
    x[2, 9] = value
    v, index, clipped = kernels.quantize(x, scale, code)
    assert clipped == clipped_before + 1 and index.max() < code.k
    bad = torch.zeros(4, 40, dtype=torch.bool)
    bad[2, 8:16] = True
    assert torch.equal(v[~bad], expected[~bad])
    assert torch.equal(v[bad], torch.zeros_like(v[bad])) or value == 3e38
    assert torch.equal(kernels.unpack(kernels.pack(v, index, code), 40, code), v)


@each_kernel
@pytest.mark.parametrize("x, scale", [((2, 12), (2,)), ((2, 16), (3,)), ((2, 16), (2, 1)), ((16,), (16,))])
def test_wrong_shapes_are_refused(kernels: Kernels, x: tuple[int, ...], scale: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not whole blocks"):
        kernels.quantize(torch.zeros(x), torch.ones(scale), CODES[3])


@each_kernel
def test_wrong_row_width_is_refused(kernels: Kernels) -> None:
    with pytest.raises(ValueError, match="bytes, not 9"):
        kernels.unpack(torch.zeros(2, 9, dtype=torch.uint8), 16, CODES[3])


def test_for_device() -> None:
    assert for_device(torch.device("cpu")).quantize is cpu.quantize
    assert for_device(torch.device("meta")).quantize is reference.quantize
