"""Pieces put together give the whole, and the same bits on any number of threads."""

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from nestquant_cli.codecs.ldlq import ldlq
from nestquant_cli.parallel.tiles import (
    SMALL,
    TILE,
    diagonal_blocks,
    over_rows,
    product,
    run_pieces,
    run_tasks,
    set_own_threads,
    slices,
)
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


def test_pieces_of_pieces_are_done_where_they_are() -> None:
    """As many threads as there are would otherwise all wait for one more."""
    seen: list[tuple[int, int, bool]] = []

    def outer(first: int) -> None:
        here = threading.get_ident()
        run_pieces(lambda second: seen.append((first, second, threading.get_ident() == here)), range(3))

    run_pieces(outer, range(8))
    assert sorted(seen) == [(first, second, True) for first in range(8) for second in range(3)]


@pytest.mark.parametrize("needed", [SMALL, SMALL + 1])
def test_tasks_that_need_much_memory_run_one_by_one_on_all_threads(needed: int) -> None:
    seen: list[tuple[int, bool]] = []
    run_tasks(lambda task: seen.append((task, threading.current_thread() is threading.main_thread())), range(5), needed)
    assert sorted(seen) == [(task, needed > SMALL) for task in range(5)]


def test_small_tasks_run_side_by_side_in_turns() -> None:
    seen: list[tuple[int, bool]] = []
    sizes = [SMALL // 2, SMALL // 2, SMALL + 1, 1, SMALL]

    def work(task: int) -> None:
        seen.append((task, threading.current_thread() is threading.main_thread()))

    run_tasks(work, range(5), sizes.__getitem__)
    assert sorted(seen) == [(0, False), (1, False), (2, True), (3, False), (4, False)]


@pytest.mark.parametrize(("n", "size"), [(8, 8), (24, 8), (96, 32)])
def test_diagonal_blocks_are_those_on_the_diagonal(n: int, size: int) -> None:
    matrix = torch.arange(n * n).view(n, n)
    blocks = diagonal_blocks(matrix.t(), size)
    assert blocks.shape == (n // size, size, size)
    for number, block in enumerate(blocks):
        at = slice(number * size, (number + 1) * size)
        assert torch.equal(block, matrix.t()[at, at])


def in_new_thread(work: Callable[[], int]) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("count", [5, 11])
def test_later_threads_have_as_many_torch_threads_as_before(count: int, threads: Callable[[int], None]) -> None:
    """Whether or not this thread has another number than the one that new threads start with."""
    threads(5)
    set_own_threads(count)
    assert in_new_thread(torch.get_num_threads) == 5
    seen: list[int] = []
    run_pieces(lambda _: seen.append(torch.get_num_threads()), range(40))
    assert seen == [1] * 40
    assert torch.get_num_threads() == count
    assert in_new_thread(torch.get_num_threads) == 5


def test_pieces_stay_on_one_thread_whatever_is_set_outside(threads: Callable[[int], None]) -> None:
    """A worker that has computed nothing yet must not take over a number that is set later."""
    threads(6)
    run_pieces(lambda _: None, range(6))
    threads(4)
    threads(6)
    seen: list[int] = []
    run_pieces(lambda _: seen.append(torch.ones(2).add(1).numel() - 2 + torch.get_num_threads()), range(24))
    assert seen == [1] * 24


def test_a_thread_that_starts_during_ldlq_has_all_torch_threads(threads: Callable[[int], None]) -> None:
    threads(3)
    seen: list[tuple[int, int]] = []

    def look(target: torch.Tensor, block: int) -> torch.Tensor:
        seen.append((torch.get_num_threads(), in_new_thread(torch.get_num_threads)))
        return target

    ldlq(gaussian(4, 16), None, look)
    assert seen == [(1, 3)] * 2 and torch.get_num_threads() == 3
