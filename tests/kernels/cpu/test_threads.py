"""The CPU kernels on several threads: torch's, or Python's where torch has none that can be called."""

import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from nestquant_cli.e8.code import NestedCode
from nestquant_cli.kernels.cpu import encode, pack, words
from nestquant_cli.kernels.cpu import nested as cpu
from nestquant_cli.kernels.cpu import threads as cpu_team

CODE = NestedCode(q=13, multipliers=(3, 4, 5, 6, 9), word_bits=32)
ROWS, ENTRIES = 2049, 136  # enough blocks to be shared, in parts that are not whole tiles or rows


pytestmark = pytest.mark.usefixtures("two_threads")


def round_trip() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(ROWS, ENTRIES, generator=torch.Generator().manual_seed(0))
    v, index, _ = cpu.quantize(x, torch.linspace(0.03, 0.04, ROWS), CODE)
    packed = cpu.pack(v, index, CODE)
    unpacked = cpu.unpack(packed, ENTRIES, CODE)
    assert torch.equal(unpacked, v)
    errors = cpu.block_errors(x.view(-1, 8)[:9000], torch.tensor([0.03, 0.04]), torch.tensor([3, 4]), 13, 127)
    return unpacked, packed, errors


@pytest.mark.parametrize("torchs", [True, False])
def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch, torchs: bool) -> None:
    if not torchs:
        monkeypatch.setattr(cpu_team, "team", lambda: 0)
    shared = round_trip()
    torch.set_num_threads(1)
    for a, b in zip(shared, round_trip(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems' torch has another OpenMP")
def test_torchs_threads_are_found() -> None:
    assert cpu_team.team()


def test_calls_from_several_threads() -> None:
    expected = round_trip()
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: round_trip(), range(8)):
            for a, b in zip(expected, result, strict=True):
                assert torch.equal(a, b)


def test_small_work_stays_in_this_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise AssertionError("more threads were asked for")

    monkeypatch.setattr(cpu_team, "team", refuse)
    cpu.quantize(torch.zeros(576, 8), torch.ones(576), CODE)
    with pytest.raises(AssertionError, match="more threads were asked for"):
        round_trip()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_after_a_fork() -> None:
    """A child, such as a data loader's worker, has none of its parent's threads and must make its own."""
    unpacked, packed, _ = round_trip()
    child = multiprocessing.get_context("fork").Process(target=_unpack_in_child, args=(packed, unpacked))
    child.start()
    child.join(60)
    hangs = child.is_alive()
    if hangs:
        child.kill()
    assert not hangs
    assert child.exitcode == 0


def _unpack_in_child(packed: Tensor, unpacked: Tensor) -> None:
    """Without torch's own operations on several threads, which a forked child waits for in vain."""
    assert np.array_equal(cpu.unpack(packed, ENTRIES, CODE).numpy(), unpacked.numpy())


def test_compiled_code_of_every_shared_loop_is_kept_under_a_name_of_its_own() -> None:
    """A closure would have one name for all loops, and would be compiled again in every process."""
    loops = [encode.quantize, encode.block_errors, pack.pack, words.unpack, words.indices]
    names = [loop.on_team._cache._impl.filename_base for loop in loops]
    assert len(set(names)) == len(loops) and all("_on_team-" in name for name in names)
    assert names[0].startswith("encode.quantize_on_team-")
