import itertools

import pytest
import torch
from torch import Tensor

from nestquant_cli.e8.nearest import is_lattice_vector, nearest_point
from nestquant_cli.e8.voronoi import GENERATOR, digits_of, gauge, point_of, reduce

RATIOS = [2, 3, 4, 5, 9, 13, 14, 197, 256]
OFFSET = torch.tensor([2.0 ** -(i + 2) for i in range(8)], dtype=torch.float64)


def sample_digits(q: int, count: int = 20_000) -> Tensor:
    """All codes where there are few, else random ones, then corners: all digits 0, q/2 or q−1."""
    if q**8 <= count:
        return torch.tensor(list(itertools.product(range(q), repeat=8)))
    random = torch.randint(0, q, (count, 8), generator=torch.Generator().manual_seed(q))
    corners = torch.tensor(list(itertools.product((0, q // 2, q - 1), repeat=8)))
    return torch.cat([random, corners])


def minimal_vectors() -> Tensor:
    """The 240 shortest vectors of E8, (240, 8) float64."""
    vectors = []
    for i, j in itertools.combinations(range(8), 2):
        for signs in itertools.product((1, -1), repeat=2):
            vector = [0.0] * 8
            vector[i], vector[j] = signs
            vectors.append(vector)
    vectors += [[s / 2 for s in signs] for signs in itertools.product((1, -1), repeat=8) if signs.count(-1) % 2 == 0]
    return torch.tensor(vectors, dtype=torch.float64)


@pytest.mark.parametrize("q", RATIOS)
def test_points_and_digits_are_inverse(q: int) -> None:
    digits = sample_digits(q)
    points = point_of(digits, q)
    assert is_lattice_vector(points).all()
    assert torch.equal(digits_of(points, q), digits)
    assert torch.equal(reduce(points, q), points)


@pytest.mark.parametrize("q", [2, 3])
def test_all_codes_decode_to_different_points(q: int) -> None:
    points = point_of(sample_digits(q), q)
    assert torch.unique(points, dim=0).shape[0] == q**8


@pytest.mark.parametrize("q", RATIOS)
def test_points_lie_in_the_cell(q: int) -> None:
    """They are in the closed cell, and with the offset of the tie rule in the open one, which makes them unique."""
    points = point_of(sample_digits(q), q).double()
    assert gauge(points / 2).max() <= q
    assert gauge((points + OFFSET) / 2).max() < q


@pytest.mark.parametrize("q", RATIOS)
def test_reduce_does_not_depend_on_the_member_of_the_class(q: int) -> None:
    """Codewords, among them many on the boundary, moved by q·λ come back."""
    points = point_of(sample_digits(q), q)
    translation = nearest_point(4 * torch.randn(points.shape, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(reduce(points + q * translation, q), points)


@pytest.mark.parametrize("q", [2, 3, 4, 9])
def test_reduce_on_boundary_points(q: int) -> None:
    """q·f/2 is equally near to 0 and q·f, for every minimal vector f."""
    boundary = (q * minimal_vectors()).to(torch.int32)  # doubled coordinates of q·f/2
    boundary = boundary[is_lattice_vector(boundary)]
    assert len(boundary) > 0
    representatives = reduce(boundary, q)
    assert torch.equal(digits_of(representatives, q), digits_of(boundary, q))
    translation = nearest_point(5 * torch.randn(boundary.shape, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(reduce(boundary + q * translation, q), representatives)


def test_digits_are_coordinates_in_the_generator() -> None:
    digits = torch.randint(0, 5, (100, 8))
    assert torch.equal(digits_of(digits @ GENERATOR, 5), digits)
    assert is_lattice_vector(GENERATOR).all()
    assert round(torch.linalg.det(GENERATOR.double() / 2).item()) == 1


def test_gauge_is_the_largest_facet() -> None:
    """t lies in g·V if and only if ⟨t, f⟩ ≤ g·|f|²/2 = g for every minimal vector f."""
    t = 3 * torch.randn(500, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(gauge(t), (t @ minimal_vectors().T).amax(-1))
    assert gauge(torch.zeros(8)) == 0
