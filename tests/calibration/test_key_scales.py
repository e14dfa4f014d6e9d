"""Factors of the channels of keys: those that make the error of scores smallest, for each head by itself."""

import pytest
import torch
from torch import Tensor

from nestquant_cli.calibration.key_scales import key_factors
from nestquant_cli.calibration.kv_observer import Sample
from nestquant_cli.calibration.statistics import fit_cache
from nestquant_cli.codecs.factored import FactoredCode
from nestquant_cli.codecs.registry import fit_heads
from nestquant_cli.codecs.vectors import VectorCode
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.modules.cache_codes import round_heads
from nestquant_cli.rotation.seeds import ScaledSeed
from nestquant_cli.rotation.transform import rotation
from tests.families import gaussian

HEADS, SEED = 2, 5
FOUR = shape_for_bits(4)


def sample(size: int, center: float = 0.0) -> tuple[Sample, Tensor]:
    """Keys and queries whose channels differ in each head, and E[q²] (heads, size)."""
    spread = torch.exp2(1.5 * gaussian(2, HEADS, size, seed=3))
    keys = gaussian(HEADS, 400, size) * spread[0][:, None] + center * gaussian(HEADS, 1, size, seed=4)
    energy = spread[1].double().square()
    return Sample(keys, gaussian(HEADS, 400, size, seed=1), torch.stack([energy, 3 * energy])), energy


def cost(keys: Tensor, code: VectorCode, seed: int | None, energy: Tensor) -> float:
    """The error of scores, Σ w_i E[z_i²]."""
    error = round_heads(keys[None], code, seed)[1][0] - keys
    return float((error.double().square().mean(1) * energy).sum())


@pytest.mark.parametrize(("size", "center", "seed"), [(64, 6.0, SEED), (80, 0.0, SEED), (24, 6.0, None)])
def test_factors_lower_the_error_of_scores(size: int, center: float, seed: int | None) -> None:
    given, energy = sample(size, center)
    plain = fit_cache(given, FOUR, 0, seed, centering=True)
    factored = fit_cache(given, FOUR, 0, seed, centering=True, key_scales=True)
    assert isinstance(factored.keys, FactoredCode) and factored.keys.fits(HEADS, size)
    assert factored.values == plain.values
    before, after = (cost(given.keys, codes.keys, seed, energy) for codes in (plain, factored))
    assert after < (0.75 if seed is None else 0.6) * before  # without a rotation the error is less white


def test_they_are_the_fourth_roots_of_the_ratio_of_energies() -> None:
    given, energy = sample(64)
    rotated = rotation(64, SEED).apply(given.keys)
    found = key_factors(given, rotated, fit_heads(rotated, FOUR, 0, False), SEED)
    assert found is not None
    factors = torch.stack([torch.from_numpy(ScaledSeed(0, each).values()) for each in found])
    expected = (energy / given.keys.double().square().mean(1)) ** 0.25
    expected /= expected.log().mean(1, keepdim=True).exp()
    assert float((factors.log2() - expected.log2()).abs().max()) < 0.051  # half a step of the grid


def test_the_energy_is_that_about_the_center() -> None:
    """A center that is large in one channel says nothing of how much of that channel is rounded."""
    given, _ = sample(64)
    given.keys[:, :, 7] = gaussian(HEADS, 400, seed=6)
    moved, steps = given.keys.clone(), []
    moved[:, :, 7] += 60
    for keys, centering in ((given.keys, True), (moved, True), (moved, False)):
        rotated = rotation(64, SEED).apply(keys)
        found = key_factors(given._replace(keys=keys), rotated, fit_heads(rotated, FOUR, 0, centering), SEED)
        assert found is not None
        steps.append([each[7] for each in found])
    alone, centered, plain = steps
    assert all(abs(a - b) <= 3 for a, b in zip(alone, centered, strict=True))
    assert all(a - b >= 15 for a, b in zip(alone, plain, strict=True))


@pytest.mark.parametrize("heads", [slice(0, 2), slice(1, 2)])
def test_without_queries_of_each_head_there_are_no_factors(heads: slice) -> None:
    given, _ = sample(64)
    given.queries[:, heads] = 0
    assert fit_cache(given, FOUR, 0, SEED, key_scales=True) == fit_cache(given, FOUR, 0, SEED)


def test_samples_of_processes_are_joined_in_order() -> None:
    given, _ = sample(64)
    keys, values, queries = given
    parts = [Sample(keys[:, :100], values[:, :100], queries[:1]), Sample(keys[:, 100:], values[:, 100:], queries[1:])]
    joined = Sample.join(parts)
    assert all(torch.equal(one, other) for one, other in zip(joined, given, strict=True))
