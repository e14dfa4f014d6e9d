"""Pieces put together give the whole, and the same bits on any number of threads."""

from collections.abc import Callable, Iterator

import pytest
import torch

from nestquant_cli.tiles import TILE, over_rows, product, run_pieces, slices
from tests.families import gaussian

CPU = torch.device("cpu")


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_slices_cover_everything_once() -> None:
    for count in (0, 1, TILE, 3 * TILE + 7):
        assert [i for part in slices(count, CPU) for i in range(part.start, part.stop)] == list(range(count))
    assert slices(10**6, torch.device("meta")) == [slice(0, 10**6)]


@pytest.mark.parametrize("rows", [1, 37, 5 * TILE])
def test_a_product_is_the_same_on_any_threads(rows: int, threads: Callable[[int], None]) -> None:
    a, b = gaussian(rows, 200), gaussian(200, 65, seed=1)
    found = []
    for count in (1, 2, 7):
        threads(count)
        found.append(product(a, b))
        assert torch.get_num_threads() == count
    assert all(torch.equal(each, found[0]) for each in found)
    torch.testing.assert_close(found[0], a @ b, rtol=1e-4, atol=1e-4)
    assert torch.equal(over_rows(lambda x: -x, a), -a)


def test_what_fails_in_a_piece_is_raised() -> None:
    def fail(piece: int) -> None:
        if piece == 2:
            raise ValueError("two")

    with pytest.raises(ValueError, match="two"):
        run_pieces(fail, range(4))
