import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.rotation.parted import parted_rotation
from nestquant_cli.rotation.reflections import rotation_for
from nestquant_cli.rotation.seeds import ScaledSeed, bytes_of, dual, factors_of, plain, scaled, seeds_of_parts, text_of
from nestquant_cli.rotation.transform import rotation
from tests.families import gaussian


def some_seed(order: int, seed: int = 3) -> ScaledSeed:
    """A seed with random factors, most of them between a quarter and four."""
    return ScaledSeed(seed, bytes_of(np.exp2(gaussian(order, seed=seed).numpy().astype(np.float64))))


def test_a_byte_is_a_tenth_of_an_octave() -> None:
    values = ScaledSeed(0, bytes([45, 55, 35, 0, 90])).values()
    np.testing.assert_allclose(values, [1, 2, 0.5, 2**-4.5, 2**4.5])
    assert bytes_of(np.array([1.0, 2.0, 0.5, 1e-9, 1e9])) == bytes([45, 55, 35, 0, 90])


def test_a_text_has_a_byte_of_json_for_each_factor() -> None:
    text = text_of(bytes(range(91)))
    assert text[0] == "#" and text[45] == "P" and text[90] == "~" and len(json.dumps(text)) == 93
    assert factors_of(text) == bytes(range(91))
    for other in ("\\", '"', " ", "ß", "\n"):
        with pytest.raises(ValueError, match="no factor"):
            factors_of("PP" + other)


@given(st.floats(1 / 22, 22))
def test_a_factor_is_rounded_to_the_nearest(factor: float) -> None:
    (found,) = ScaledSeed(0, bytes_of(np.array([factor]))).values()
    assert 2 ** (-1 / 20) * (1 - 1e-9) <= found / factor <= 2 ** (1 / 20) * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 12).map(lambda blocks: 8 * blocks))
def test_factors_are_beside_the_signs(parts: int, size: int) -> None:
    order = parts * size
    seed, x = some_seed(order), gaussian(3, order)
    turned = parted_rotation(order, seed, parts)
    factors = torch.from_numpy(seed.values()).float()
    expected = parted_rotation(order, seed.seed, parts).apply(x * factors)
    torch.testing.assert_close(turned.apply(x), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(turned.inverse(turned.apply(x)), x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x @ turned.matrix().t(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("reflected", [False, True])
def test_products_with_rows_of_the_dual_are_those_before(reflected: bool) -> None:
    reflectors = gaussian(4, 48, seed=1) if reflected else None
    seed, x, w = some_seed(48), gaussian(5, 48), gaussian(7, 48, seed=2)
    turned, back = rotation_for(48, seed, reflectors), rotation_for(48, dual(seed), reflectors)
    torch.testing.assert_close(turned.apply(x) @ back.apply(w).t(), x @ w.t(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(back.inverse(back.apply(w)), w, rtol=1e-4, atol=1e-4)


def test_seeds_without_factors_stay_what_they_are() -> None:
    assert dual(5) == 5 and dual(None) is None and plain(5) == 5 and seeds_of_parts(5, 3) == (5, 5, 5)
    assert scaled(5, None) == 5 and scaled(None, bytes([45] * 8)) is None
    seed = some_seed(16)
    assert dual(dual(seed)) == seed and plain(seed) == 3 and scaled(3, seed.factors) == seed
    assert b"".join(part.factors for part in seeds_of_parts(seed, 2)) == seed.factors


def test_factors_of_another_number_are_refused() -> None:
    with pytest.raises(NestQuantError, match="order 24 got 16 factors"):
        rotation(24, some_seed(16))
