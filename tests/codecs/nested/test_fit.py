import pytest
import torch
from torch import Tensor

from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.codecs.nested.fit import SAMPLE_BLOCKS, fit_scales, gaussian_error, sample_blocks
from nestquant_cli.e8.code import NestedCode
from nestquant_cli.e8.rates import BEST
from nestquant_cli.e8.shape import CodeShape, shape_for_bits, shape_for_q
from nestquant_cli.kernels import for_device

FOUR_BITS = ScaledCode(NestedCode(q=13, multipliers=(3, 4, 5, 6, 9), word_bits=32), unit=0.9 / 13 / 2)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decoded(x: Tensor, scaled: ScaledCode) -> Tensor:
    """Rows after quantization, float32."""
    scale = scaled.row_scale(x)
    v, _, _ = for_device(x.device).quantize(x, scale, scaled.code)
    return scale[:, None] * v


# The design's table, for entries in the range of int8.
@pytest.mark.parametrize("q, k, error", [(14, 4, 0.00603), (13, 5, 0.00641)])
def test_error_of_a_fitted_code_on_a_gaussian(q: int, k: int, error: float) -> None:
    scaled = fit_scales(gaussian(SAMPLE_BLOCKS, 8), shape_for_q(q, k))
    assert scaled.code.k == k
    assert scaled.code.limit == 127
    assert gaussian_error(scaled, gaussian(100_000, 8, seed=1)) <= 1.02 * error


@pytest.mark.parametrize("bits", [2, 3.5, 5])
def test_error_is_what_the_table_of_rates_says(bits: float) -> None:
    scaled = fit_scales(gaussian(2048, 8), shape_for_bits(bits))
    expected = BEST[int(8 * bits)][3]
    assert gaussian_error(scaled, gaussian(20_000, 8, seed=1)) == pytest.approx(expected, rel=0.05)


def test_fit_follows_the_data() -> None:
    """Data of another size ask for other scales, by that factor."""
    shape = CodeShape(q=13, k=3, word_bits=32, limit=32767)
    small, large = fit_scales(gaussian(1024, 8) / 2, shape), fit_scales(gaussian(1024, 8), shape)
    assert small.betas[-1] < large.betas[-1]
    assert gaussian_error(small, gaussian(4096, 8, seed=1) / 2) < gaussian_error(large, gaussian(4096, 8, seed=1) / 2)


def test_betas() -> None:
    assert FOUR_BITS.betas == pytest.approx([0.9 / 13 * m for m in (3, 4, 5, 6, 9)])


def test_row_of_zeros() -> None:
    x = torch.zeros(2, 16)
    assert torch.equal(FOUR_BITS.row_scale(x), torch.ones(2))
    assert torch.equal(decoded(x, FOUR_BITS), x)


@pytest.mark.parametrize("factor", [1e2, 1e4])
def test_outliers_are_clipped_gracefully(factor: float) -> None:
    """A single huge entry takes the whole range of its row; the result is finite and better than zeros."""
    x = gaussian(64, 256)
    x[torch.arange(64), torch.arange(64) * 4] *= factor
    y = decoded(x, FOUR_BITS)
    assert torch.isfinite(y).all()
    error, energy = (x - y).square().sum(-1), x.square().sum(-1)
    assert (error < energy).all()


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**-3, 2.0**40])
def test_scale_invariance(factor: float) -> None:
    x = gaussian(8, 64)
    assert torch.equal(decoded(factor * x, FOUR_BITS), factor * decoded(x, FOUR_BITS))


def test_sample_blocks_is_seeded_and_normalised() -> None:
    x = gaussian(1200, 64) * torch.linspace(0.1, 10, 1200)[:, None]
    sample = sample_blocks(x, seed=3)
    assert sample.shape == (SAMPLE_BLOCKS, 8)
    assert sample.square().mean().item() == pytest.approx(1, rel=0.05)
    assert torch.equal(sample, sample_blocks(x, seed=3))
    assert not torch.equal(sample, sample_blocks(x, seed=4))


def test_sample_blocks_of_few_rows_and_of_zeros() -> None:
    x = gaussian(3, 16)
    x[1] = 0
    sample = sample_blocks(x, seed=0)
    assert sample.shape == (4, 8)
    assert torch.isfinite(sample).all()
