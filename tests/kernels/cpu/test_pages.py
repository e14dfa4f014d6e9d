"""Attention to keys and values in pages is to the bit that to the same ones in a row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nestquant_cli.e8.code import NestedCode
from nestquant_cli.kernels.cpu.attention import CHUNK
from nestquant_cli.kernels.device_kernels import of_family
from tests.families import gaussian, relative_error

CODE, UNIT, SEED = NestedCode(q=13, multipliers=(3, 4, 5, 6, 9), word_bits=32), 0.9 / 13 / 2, 3
REFERENCE, CPU = of_family("reference"), of_family("cpu")
HEADS, SCALE = 2, 0.3

pytestmark = pytest.mark.usefixtures("two_threads")


def in_pages(packed: list[Tensor], page_tokens: int, spread: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors (key heads, tokens, bytes) of requests in pages in any order among pages of others; and their table."""
    counts = [-(-p.shape[1] // page_tokens) for p in packed]
    size = packed[0].shape[2]
    free = torch.randperm(sum(counts) + 3, generator=torch.Generator().manual_seed(page_tokens)).tolist()
    room = torch.full((len(free), HEADS, page_tokens * size + spread), 255, dtype=torch.uint8)
    pages = room[..., spread:].unflatten(-1, (page_tokens, size))
    table = torch.full((len(packed), max(counts)), -1, dtype=torch.int32)
    for request, (p, count) in enumerate(zip(packed, counts, strict=True)):
        for i in range(count):
            part = p[:, i * page_tokens : (i + 1) * page_tokens]
            table[request, i] = free.pop()
            pages[table[request, i], :, : part.shape[1]] = part
    return pages, table


def encoded(tokens: int, size: int, seed: int, centers: Tensor | None = None) -> Tensor:
    x = gaussian(HEADS, tokens, size, seed=seed) + (0 if centers is None else centers[:, None])
    packed = CPU.encode_heads(x.view(-1, size), CODE, UNIT, SEED, False, centers, tokens)[0]
    return packed.view(HEADS, tokens, -1)


def both(
    lengths: list[int], page_tokens: int, sizes: tuple[int, int], group: int, window: int | None, centered: bool
) -> tuple[Tensor, Tensor]:
    """What attention to pages gives on the CPU, and to each request by itself, in a row."""
    size, value_size = sizes
    centers = 2 * gaussian(HEADS, size, seed=9) if centered else None
    keys = [encoded(tokens, size, 2 * i, centers) for i, tokens in enumerate(lengths)]
    values = [encoded(tokens, value_size, 2 * i + 1) for i, tokens in enumerate(lengths)]
    key_pages, table = in_pages(keys, page_tokens, spread=3)
    value_pages, same = in_pages(values, page_tokens)
    assert torch.equal(table, same)
    query = gaussian(len(lengths), HEADS, group, size, seed=5)
    sides = (key_pages, CODE), (value_pages, CODE, value_size)
    fixed = query, *sides, table, torch.tensor(lengths, dtype=torch.int32), SEED, SCALE, centers, window
    found, other = CPU.attend_pages(*fixed), REFERENCE.attend_pages(*fixed)
    assert relative_error(found, other) < 2e-6
    rows = []
    for q, k, v in zip(query, keys, values, strict=True):
        first = 0 if window is None else max(0, k.shape[1] - window)
        states = (k[None, :, first:], CODE), (v[None, :, first:], CODE, value_size)
        rows.append(CPU.attend(q[None], *states, SEED, None, SCALE, centers))
    return found, torch.cat(rows)


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=5),
    page_tokens=st.sampled_from([1, 7, 16, 32, 64, 128]),
    sizes=st.sampled_from([(16, 16), (80, 64)]),
    group=st.sampled_from([1, 3, 8]),
    window=st.sampled_from([None, 1, 50, 500]),
    centered=st.booleans(),
)
def test_equal_to_attention_to_a_row(
    lengths: list[int], page_tokens: int, sizes: tuple[int, int], group: int, window: int | None, centered: bool
) -> None:
    found, expected = both(lengths, page_tokens, sizes, group, window, centered)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("window", [None, CHUNK + 40])
def test_pasts_of_several_chunks(window: int | None) -> None:
    found, expected = both([CHUNK, 2 * CHUNK + 3, 5, CHUNK + 1], 48, (16, 16), 3, window, True)
    assert torch.equal(found, expected)


def test_threads_change_nothing_and_a_request_without_tokens_is_zero() -> None:
    packed = [encoded(tokens, 16, tokens) for tokens in (1500, 700)]
    pages, table = in_pages(packed, 128)
    query = gaussian(3, HEADS, 40, 16)
    table = torch.cat([table, torch.full_like(table[:1], -1)])
    states = (pages, CODE), (pages, CODE, 16)
    fixed = query, *states, table, torch.tensor([1500, 700, 0]), SEED, SCALE
    shared = CPU.attend_pages(*fixed)
    torch.set_num_threads(1)
    assert torch.equal(CPU.attend_pages(*fixed), shared)
    for kernels in (CPU, REFERENCE):
        assert not kernels.attend_pages(*fixed)[2].any()
