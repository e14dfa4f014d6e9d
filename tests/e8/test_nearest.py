import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nestquant_cli.e8.nearest import is_lattice_vector, nearest_point

CORNERS = torch.tensor(list(itertools.product((0, 1), repeat=8)), dtype=torch.float64)
entries = st.floats(-50, 50, width=32) | st.integers(-8, 8).map(lambda n: n / 4)


def least_squared_distance(t: Tensor) -> Tensor:
    """By trying every rounding up or down, in both cosets of D8."""
    best = torch.full((t.shape[0],), torch.inf, dtype=t.dtype)
    for shift in (0.0, 0.5):
        corners = torch.floor(t - shift)[:, None] + CORNERS  # (n, 256, 8)
        distance = (t[:, None] - shift - corners).square().sum(-1)
        best = torch.minimum(best, distance.masked_fill(corners.sum(-1) % 2 != 0, torch.inf).amin(-1))
    return best


def assert_nearest(t: Tensor) -> None:
    u = nearest_point(t)
    assert u.dtype == torch.int32
    assert is_lattice_vector(u).all()
    t = t.double()
    torch.testing.assert_close((t - u / 2).square().sum(-1), least_squared_distance(t), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_points(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    assert_nearest(3 * torch.randn(2000, 8, generator=generator, dtype=dtype))


def test_ties() -> None:
    """Points with equally near lattice vectors: quarters of integers, among them the deep holes."""
    generator = torch.Generator().manual_seed(1)
    assert_nearest(torch.randint(-8, 9, (3000, 8), generator=generator).double() / 4)
    assert_nearest(torch.tensor([[1.0] + [0.0] * 7, [0.5] * 8, [0.25] * 8, [-0.5] * 8, [0.0] * 8]).double())


@given(st.lists(entries, min_size=8, max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_point(values: list[float]) -> None:
    assert_nearest(torch.tensor([values], dtype=torch.float64))


def test_lattice_vectors_are_their_own_nearest_points() -> None:
    generator = torch.Generator().manual_seed(2)
    u = nearest_point(10 * torch.randn(500, 8, generator=generator))
    assert torch.equal(nearest_point(u / 2), u)


def test_leading_dimensions() -> None:
    t = torch.randn(3, 0, 8)
    assert nearest_point(t).shape == (3, 0, 8)
    assert nearest_point(torch.zeros(8)).shape == (8,)


def test_is_lattice_vector() -> None:
    vectors = torch.tensor([[1] * 8, [-1] + [1] * 7, [2] + [0] * 7, [2, 2] + [0] * 6, [1, 2] + [1] * 6, [4] + [0] * 7])
    assert is_lattice_vector(vectors).tolist() == [True, False, False, True, False, True]
