"""The compiled K-best search of a panel: against the reference, and with ties."""

import pytest
import torch
from torch import Tensor

from nestquant_cli.codecs.lattice.code import levels
from nestquant_cli.kernels.cpu import lattice_beam as cpu_beam
from nestquant_cli.kernels.reference import lattice_beam as reference_beam
from tests.families import gaussian

COUNTS = torch.tensor([4, 4, 8, 2, 4, 8, 16, 4, 2, 4])
TABLES = torch.stack([torch.nn.functional.pad(levels(int(c).bit_length() - 1, 2)[0], (0, 16 - int(c))) for c in COUNTS])


def compiled(residual: Tensor, cost: Tensor, T: Tensor, paths: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, alive, width = residual.shape
    u, costs = torch.zeros(rows, paths, width), torch.zeros(rows, paths)
    u[:, :alive], costs[:, :alive] = residual, cost
    z, parent = torch.empty(u.shape, dtype=torch.uint8), torch.empty(costs.shape, dtype=torch.int64)
    arrays = [x.numpy() for x in (T, torch.arange(width), TABLES, COUNTS, z, parent)]
    kept = cpu_beam.search_panel(u.numpy(), costs.numpy(), alive, *arrays, paths)
    return z[:, :kept], u[:, :kept], parent[:, :kept], costs[:, :kept]


@pytest.mark.parametrize("paths", [1, 2, 5, 16, 100])
@pytest.mark.parametrize("alive", [1, 2])
def test_as_the_reference(paths: int, alive: int) -> None:
    alive, width = min(alive, paths), len(COUNTS)
    T = (gaussian(width, width, seed=1) * 0.3 + 2 * torch.eye(width)).tril()
    residual, cost = 3 * gaussian(30, alive, width, seed=2), gaussian(30, alive, seed=3).square()
    found = compiled(residual, cost, T, paths)
    expected = reference_beam.search_panel(residual, cost, T, TABLES, COUNTS, torch.arange(width), paths)
    for a, b in zip(found[:3], expected[:3], strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(found[3], expected[3])


@pytest.mark.parametrize("paths", [1, 3, 7, 8, 9])
def test_of_equal_paths_as_many_are_kept_as_there_is_room_for(paths: int) -> None:
    width = len(COUNTS)
    z, chosen, _, cost = compiled(torch.zeros(4, 1, width), torch.zeros(4, 1), torch.eye(width), paths)
    assert z.shape == (4, paths, width)  # levels are symmetric: from 0, both nearest cost the same in every column
    best = sum(float(TABLES[c, : COUNTS[c]].abs().min()) ** 2 for c in range(width))
    torch.testing.assert_close(cost, torch.full((4, paths), best))
    assert torch.equal(chosen, torch.stack([TABLES[c][z[..., c].int()] for c in range(width)], -1))
    assert all(len(row.unique(dim=0)) == paths for row in z)


def test_what_is_not_a_number_ends() -> None:
    width = len(COUNTS)
    residual = torch.full((1, 1, width), float("nan"))
    assert compiled(residual, torch.zeros(1, 1), torch.eye(width), 4)[0].shape == (1, 4, width)
