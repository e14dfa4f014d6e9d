import numpy as np
import pytest
import torch
from torch import Tensor

from nestquant_cli.calibration.channel_scales import Behind, channel_factors, column_energy, energy_about_center
from nestquant_cli.calibration.input_fit import fit_input, in_basis
from nestquant_cli.codecs.registry import fit_heads, shape_of
from nestquant_cli.rotation.seeds import ScaledSeed, scaled
from nestquant_cli.rotation.transform import rotation
from tests.families import gaussian

FOUR = shape_of("nestquant", 4, None, "act")


def factors_of(energy: Tensor, columns: Tensor, share: float) -> Tensor:
    return torch.from_numpy(ScaledSeed(0, channel_factors(energy, columns, share)).values())


def energies(seed: int) -> Tensor:
    return torch.exp2(2 * gaussian(64, seed=seed).double())


def test_for_tokens_alone_the_two_energies_meet() -> None:
    c, w = energies(0), energies(1)
    s = factors_of(c, w, 0.0)
    torch.testing.assert_close(s, (w / c) ** 0.25 / (w / c).log().mean().mul(0.25).exp(), rtol=0.04, atol=0)


def test_for_weights_alone_their_columns_become_alike() -> None:
    c, w = energies(0), energies(1)
    columns = w / factors_of(c, w, 1.0).square()
    torch.testing.assert_close(columns, columns.mean().expand(64), rtol=0.08, atol=0)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7])
def test_no_factors_nearby_cost_less(share: float) -> None:
    c, w = energies(2), energies(3)

    def cost(s: Tensor) -> float:
        """Of tokens and weights, with θ at the factors that are to cost least."""
        t, n = s.square(), len(s)
        return float((1 - share) * ((c * t).sum() / energy).log() + (w / t).sum().log() + share * t.log().sum() / n)

    s = factors_of(c, w, share)
    energy = (c * s.square()).sum()
    least = cost(s)
    assert least < cost(torch.ones(64)) - 0.1
    for seed in range(10):
        assert cost(s * torch.exp2(0.3 * gaussian(64, seed=seed).double())) > least


def test_a_channel_without_energy_has_a_factor_within_reason() -> None:
    c = torch.ones(64, dtype=torch.float64)
    c[5] = 0
    s = factors_of(c, torch.ones(64, dtype=torch.float64), 0.0)
    assert 5 < s[5] / s[6] < 20
    assert torch.equal(factors_of(torch.zeros(8), torch.zeros(8), 0.2), torch.ones(8, dtype=torch.float64))


def test_columns_count_relative_to_the_output_of_their_matrix() -> None:
    tokens, W = gaussian(500, 24), gaussian(7, 20)
    padded = torch.nn.functional.pad(W, (0, 4))
    one, large = column_energy([W], tokens), column_energy([100 * W, 0 * W], tokens)
    power = (tokens[::1] @ padded.t()).square().sum(1).mean()
    torch.testing.assert_close(one, (padded.square().sum(0) / power).double(), rtol=0.2, atol=1e-6)
    torch.testing.assert_close(one, large, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_center_is_no_energy(parts: int) -> None:
    center = torch.zeros(64)
    center[7], center[40] = 9, -9
    x = gaussian(2000, 64) + center
    rotated = torch.cat([rotation(64 // parts, 3).apply(part) for part in x.chunk(parts, 1)], 1)
    code = fit_heads(rotated.unflatten(1, (parts, -1)).transpose(0, 1), FOUR, 0, centering=True)
    assert code.centered
    rounded = code.round(rotated) if parts == 1 else code.round_parts(rotated, None, parts)
    torch.testing.assert_close(
        energy_about_center(rotated, rounded, 3, parts), torch.ones(64).double(), rtol=0.2, atol=0
    )


@pytest.mark.parametrize("parts", [1, 2])
def test_factors_lower_the_error_of_the_output(parts: int) -> None:
    size, columns = torch.exp2(gaussian(64, seed=5)), torch.exp2(gaussian(64, seed=6))
    tokens, W = [gaussian(512, 64, seed=number) * size for number in range(3)], gaussian(40, 64) * columns
    H = torch.cat(tokens).t() @ torch.cat(tokens) / 1536

    def fitted(behind: Behind | None) -> tuple[float, Tensor]:
        fit = fit_input(tokens, 64, torch.device("cpu"), FOUR, 3, True, None, False, parts, behind)
        rows = in_rotated(W, fit.factors, parts)
        hessian, _ = in_basis(turned(H), None, 3, True, None, parts, fit.factors)
        power = float((rows @ hessian * rows).sum())
        return float((rows.square() * fit.noise).sum()) / power, torch.tensor(power)

    def turned(moments: Tensor) -> Tensor:
        R = rotation(64, 3)
        return R.apply(R.apply(moments).t()).t()

    (without, before), (found, after) = fitted(None), fitted(Behind.of([W], None, FOUR))
    torch.testing.assert_close(before, after, rtol=1e-3, atol=0)
    assert found < 0.7 * without


def in_rotated(W: Tensor, factors: bytes | None, parts: int) -> Tensor:
    values = torch.ones(64) if factors is None else torch.from_numpy(ScaledSeed(0, factors).values()).float()
    return torch.cat([rotation(64 // parts, 3).apply(part) for part in (W / values).chunk(parts, 1)], 1)


def test_the_share_of_the_weights_follows_the_bits() -> None:
    eight = shape_of("integer", 8, None, "act")
    shares = [Behind.of([], shape, act).share for shape, act in ((None, FOUR), (FOUR, FOUR), (FOUR, eight))]
    assert shares[0] == 0 and 0.1 < shares[1] < 0.5 and shares[2] > 0.95
    assert isinstance(scaled(3, bytes([45])), ScaledSeed) and np.isfinite(shares).all()
