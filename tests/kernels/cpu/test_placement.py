"""A kernel gives the same bits wherever in memory its arrays lie.

A compiler makes two loops of one, for arrays that may overlap and for others, and may round a product in one of them
that it does not round in the other.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nestquant_cli.e8.code import NestedCode
from nestquant_cli.kernels.device_kernels import of_family
from tests.families import gaussian

CODE, UNIT, SEED, SCALE = NestedCode(q=13, multipliers=(3, 4, 5, 6, 9), word_bits=32), 0.9 / 13 / 2, 3, 0.3
CPU = of_family("cpu")
HEADS, TOKENS, SIZE, VALUES = 2, 114, 80, 64
CENTERS = 2 * gaussian(HEADS, SIZE, seed=9)


def encoded(size: int, centers: Tensor | None) -> Tensor:
    x = gaussian(HEADS, TOKENS, size, seed=size) + (0 if centers is None else centers[:, None])
    return CPU.encode_heads(x.view(-1, size), CODE, UNIT, SEED, False, centers, TOKENS)[0]


def keys_and_values() -> tuple[tuple[Tensor, NestedCode], tuple[Tensor, NestedCode, int]]:
    keys, values = encoded(SIZE, CENTERS), encoded(VALUES, None)
    return (keys.view(1, HEADS, TOKENS, -1), CODE), (values.view(1, HEADS, TOKENS, -1), CODE, VALUES)


def attended() -> Tensor:
    keys, values = keys_and_values()
    mask = torch.zeros(1, HEADS, 3, TOKENS)
    return CPU.attend(gaussian(1, HEADS, 3, SIZE), keys, values, SEED, mask, SCALE, CENTERS)


def attended_in_pages() -> Tensor:
    keys, values = keys_and_values()
    lengths, table = torch.tensor([TOKENS]), torch.zeros(1, 1, dtype=torch.int32)
    return CPU.attend_pages(gaussian(1, HEADS, 8, SIZE), keys, values, table, lengths, SEED, SCALE, CENTERS)


def decoded() -> Tensor:
    return CPU.decode_heads(encoded(SIZE, CENTERS), SIZE, CODE, SEED, CENTERS, TOKENS)


def rounded() -> Tensor:
    v, index, _ = CPU.quantize(gaussian(50, SIZE), torch.full((50,), 0.05), CODE)
    return torch.cat([v.flatten().float(), index.flatten().float()])


def product() -> Tensor:
    """Of exact sums, with what a center adds and a bias."""
    sums = torch.randint(-30000, 30000, (5, 117), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    token, row, bias, shift = (gaussian(size, seed=size + i) for i, size in enumerate((5, 117, 117, 117)))
    marks = torch.tensor([True, False, True, True, False])
    return CPU.scale_sums(sums, token, row, bias, torch.float32, marks, shift)


KERNELS = [lambda: encoded(SIZE, CENTERS), decoded, attended, attended_in_pages, rounded, product]
NAMES = ["encode_heads", "decode_heads", "attend", "attend_pages", "quantize", "scale_sums"]


@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_the_same_bits_everywhere(kernel: Callable[[], Tensor]) -> None:
    first, kept = kernel(), []
    for i in range(150):
        kept.append(torch.empty(1 + 17 * i))  # what comes next lies elsewhere
        assert torch.equal(kernel(), first)
