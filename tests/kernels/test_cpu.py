"""What is particular to the CPU kernels: threads."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from nestquant_cli.kernels import cpu
from nestquant_cli.lattice.code import NestedCode

CODE = NestedCode(q=13, multipliers=(3, 4, 5, 6, 9), word_bits=32)
ROWS, ENTRIES = 2049, 136  # enough blocks to be shared, in parts that are not whole tiles or rows


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def round_trip() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(ROWS, ENTRIES, generator=torch.Generator().manual_seed(0))
    v, index, _ = cpu.quantize(x, torch.linspace(0.03, 0.04, ROWS), CODE)
    packed = cpu.pack(v, index, CODE)
    unpacked = cpu.unpack(packed, ENTRIES, CODE)
    assert torch.equal(unpacked, v)
    errors = cpu.block_errors(x.view(-1, 8)[:9000], torch.tensor([0.03, 0.04]), torch.tensor([3, 4]), 13, 127)
    return unpacked, packed, errors


def test_threads_change_nothing() -> None:
    shared = round_trip()
    torch.set_num_threads(1)
    for a, b in zip(shared, round_trip(), strict=True):
        assert torch.equal(a, b)


def test_calls_from_several_threads() -> None:
    expected = round_trip()
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: round_trip(), range(8)):
            for a, b in zip(expected, result, strict=True):
                assert torch.equal(a, b)


def test_small_work_stays_in_this_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(threads: int) -> ThreadPoolExecutor:
        raise AssertionError("a pool was asked for")

    monkeypatch.setattr(cpu, "_pool", refuse)
    cpu.quantize(torch.zeros(576, 8), torch.ones(576), CODE)
    with pytest.raises(AssertionError, match="a pool was asked for"):
        round_trip()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_after_a_fork() -> None:
    """A child, such as a data loader's worker, has none of the pool's threads and must make its own."""
    round_trip()
    child = multiprocessing.get_context("fork").Process(target=_share_in_child)
    child.start()
    child.join(60)
    hangs = child.is_alive()
    if hangs:
        child.kill()
    assert not hangs
    assert child.exitcode == 0


def _share_in_child() -> None:
    done: list[int] = []
    cpu.share(lambda start, stop: done.append(stop - start), 10**6)
    assert sum(done) == 10**6 and len(done) > 1
