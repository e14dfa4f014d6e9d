"""Integers are rotated back by exact sums, whatever rotates them."""

import pytest
import torch

from nestquant_cli.rotation.integers import unrotate_integers
from nestquant_cli.rotation.transform import rotation


@pytest.mark.parametrize("order", [8, 64, 80, 104])  # 80 has a Paley factor, 104 is two blocks
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16])
def test_only_the_last_product_is_rounded(order: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(order)
    v = torch.randint(-127, 128, (50, order), generator=generator).to(dtype)
    scale = torch.rand(50, generator=generator) + 0.1
    dense = rotation(order, 5).matrix()
    found = unrotate_integers(v, scale, 5)
    sums = v.double() @ dense.sign().double()
    assert torch.equal(found, sums.float() * (scale[:, None] * dense.abs().amax(0)))
    torch.testing.assert_close(found, (scale[:, None] * v) @ dense, rtol=1e-4, atol=1e-4)


def test_without_a_rotation_it_is_the_scale_alone() -> None:
    v, scale = torch.tensor([[3, -4] * 4], dtype=torch.int8), torch.tensor([0.7])
    assert torch.equal(unrotate_integers(v, scale, None), v.float() * scale)
