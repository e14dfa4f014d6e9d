import copy

import pytest
import torch

from nestquant_cli.rotation.reflections import Reflected, Reflections, compact, rotation_for
from nestquant_cli.rotation.transform import Identity, rotation
from tests.families import gaussian


@pytest.mark.parametrize(("count", "order"), [(1, 8), (5, 24), (16, 576), (8, 8), (12, 8)])
@pytest.mark.parametrize("seed", [None, 3])
def test_orthogonal_to_1e_5(count: int, order: int, seed: int | None) -> None:
    R = rotation_for(order, seed, gaussian(count, order)).matrix().double()
    assert float((R @ R.t() - torch.eye(order)).abs().max()) < 1e-5
    assert float((R.t() @ R - torch.eye(order)).abs().max()) < 1e-5


def test_the_compact_form_is_the_product_of_the_reflections() -> None:
    vectors = gaussian(4, 12).double()
    product = torch.eye(12, dtype=torch.float64)
    for v in vectors:
        product = product @ (torch.eye(12) - 2 * torch.outer(v, v) / v.square().sum())
    V, T = compact(vectors)
    torch.testing.assert_close(torch.eye(12) - V @ T @ V.t(), product)


def test_a_reflector_of_zeros_reflects_nothing_and_two_equal_ones_neither() -> None:
    x = gaussian(3, 16)
    assert torch.equal(Reflections.of(torch.zeros(2, 16)).reflect(x), x)
    torch.testing.assert_close(Reflections.of(gaussian(1, 16).repeat(2, 1)).reflect(x), x)
    one = gaussian(1, 16)
    both = torch.cat([one, torch.zeros(1, 16)])
    torch.testing.assert_close(Reflections.of(both).reflect(x), Reflections.of(one).reflect(x))


def test_inverse_undoes_and_the_hadamard_rotation_comes_first() -> None:
    x, vectors = gaussian(2, 3, 40), gaussian(6, 40, seed=1)
    found = rotation_for(40, 5, vectors)
    assert isinstance(found, Reflected)
    torch.testing.assert_close(found.inverse(found.apply(x)), x)
    torch.testing.assert_close(found.apply(x), Reflections.of(vectors).reflect(rotation(40, 5).apply(x)))
    assert isinstance(rotation_for(40, None), Identity) and rotation_for(40, 5) is rotation(40, 5)


def test_a_cast_of_the_module_leaves_the_bits_alone() -> None:
    made = Reflections.of(gaussian(3, 8))
    cast = copy.deepcopy(made).to(torch.float16)
    assert torch.equal(cast.reflectors, made.reflectors) and list(made.state_dict()) == ["reflectors"]
