"""The search: against all points of a small box, and against nearest plane by the definition."""

import itertools

import pytest
import torch
from torch import Tensor

from nestquant_cli.codecs import paths
from nestquant_cli.codecs.lattice import search as glvq_search
from nestquant_cli.codecs.lattice.code import LatticeCode
from nestquant_cli.codecs.lattice.search import PANEL, loss, search, spread, triangle
from nestquant_cli.kernels.device_kernels import of_family
from tests.families import gaussian

BITS = LatticeCode(2, 8, 32, group_bits=(2, 3, 2), curves=(1, 2, 1))


def lower(n: int, seed: int = 3) -> Tensor:
    """A Cholesky factor of an ordinary metric."""
    x = gaussian(2 * n, n, seed=seed) @ (torch.eye(n) + 0.3 * gaussian(n, n, seed=seed + 1))
    return torch.linalg.cholesky((x.t() @ x / n).double()).float()


def lattices(count: int, d: int) -> Tensor:
    return torch.eye(d) + 0.2 * gaussian(count, d, d, seed=7)


def error(X: Tensor, code: LatticeCode, G: Tensor, C: Tensor, digits: Tensor) -> Tensor:
    return ((X - code.multiply(digits, G)) @ C).square().sum(1)


def test_the_triangle_says_the_same() -> None:
    n, C, G = 96, lower(96), lattices(3, 8)
    work = triangle(C, G, BITS)
    assert torch.equal(work.T, work.T.tril()) and (work.T.diagonal() > 0).all()
    X, digits = gaussian(4, n), torch.randint(0, 4, (4, n), dtype=torch.uint8)
    points = torch.cat([t[digits[:, p].int()] for t, p in zip(BITS.levels(C.device), BITS.groups(n), strict=True)], 1)
    found = (X @ work.turned - points @ work.T).square().sum(1)
    torch.testing.assert_close(found, error(X, BITS, G, C, digits), rtol=1e-4, atol=1e-4)


def test_many_paths_find_the_best_point() -> None:
    code = LatticeCode(2, 8, 32, group_bits=(1,), curves=(0,))
    X, C, G = gaussian(6, 8), lower(8), lattices(1, 8)
    digits = search(X, triangle(C, G, code), code, 256)
    every = torch.tensor(list(itertools.product(range(2), repeat=8)), dtype=torch.uint8)
    best = torch.stack([error(x.expand(256, 8), code, G, C, every).min() for x in X])
    torch.testing.assert_close(error(X, code, G, C, digits), best)


def test_one_path_is_the_nearest_plane() -> None:
    n = 96
    assert n > PANEL
    X, C, G = gaussian(5, n), lower(n), lattices(3, 8)
    work = triangle(C, G, BITS)
    digits = search(X, work, BITS, 1)
    residual = (X @ work.turned).double()
    tables = [table for table, part in zip(BITS.levels(C.device), BITS.groups(n), strict=True) for _ in range(n)[part]]
    for column in range(n - 1, -1, -1):
        gaps = (residual[:, column, None] / work.T[column, column] - tables[column]).abs()
        assert torch.equal(gaps.argmin(1).to(torch.uint8), digits[:, column])
        residual -= tables[column][digits[:, column].int()][:, None] * work.T[column].double()


def test_more_paths_are_better_and_threads_do_not_matter() -> None:
    X, C, G = gaussian(300, 96), lower(96), lattices(3, 8)
    work = triangle(C, G, BITS)
    one, many = (loss(X, BITS.multiply(search(X, work, BITS, paths), G), C) for paths in (1, 16))
    assert many < 0.97 * one
    before, digits = torch.get_num_threads(), search(X, work, BITS, 16)
    torch.set_num_threads(3)
    try:
        assert torch.equal(search(X, work, BITS, 16), digits)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shared", [False, True])
def test_blocks_have_the_lattice_of_their_group(shared: bool) -> None:
    code = LatticeCode(2, 8, 32, shared)
    G = lattices(1 if shared else 2, 8)
    found = spread(G, code, 40)
    assert len(found) == 5
    assert torch.equal(found[3], G[0]) and torch.equal(found[4], G[-1])


def test_a_device_without_the_compiled_search_gets_the_same_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    X, C, G = gaussian(40, 96), lower(96), lattices(3, 8)
    work = triangle(C, G, BITS)
    digits = search(X, work, BITS, 16)
    monkeypatch.setattr(glvq_search, "for_device", lambda _: of_family("reference"))
    monkeypatch.setattr(paths, "_CHUNK", 1)  # row by row
    assert torch.equal(search(X, work, BITS, 16), digits)


def test_everything_stays_on_its_device() -> None:
    X, C, G = (x.to("meta") for x in (gaussian(40, 96), lower(96), lattices(3, 8)))
    digits = search(X, triangle(C, G, BITS), BITS, 16)
    assert digits.shape == X.shape and digits.is_meta
