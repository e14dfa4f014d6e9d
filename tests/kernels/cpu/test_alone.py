"""A token is rotated and rounded alone as it is among others, to the bit.

Few tokens take other loops than many. A sum in another order gives another last bit, and that turns a rounding in one
of the next layers: a request would be answered in another way because of those that are served with it.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nestquant_cli.e8.code import NestedCode
from nestquant_cli.kernels.device_kernels import of_family
from tests.families import gaussian

CODE, UNIT, SEED = NestedCode(q=13, multipliers=(3, 4, 5, 6, 9), word_bits=32), 0.9 / 13 / 2, 3
CPU = of_family("cpu")
Results = tuple[Tensor | None, ...]


def rotated(x: Tensor, order: int) -> Results:
    return (CPU.rotate_tokens(x, order, SEED),)


def encoded(x: Tensor, order: int) -> Results:
    return CPU.encode_tokens(x, order, SEED, CODE, UNIT)


def encoded_about_a_center(x: Tensor, order: int) -> Results:
    return CPU.encode_tokens(x, order, SEED, CODE, UNIT, 2 * gaussian(order, seed=5))


def integers(x: Tensor, order: int) -> Results:
    return CPU.to_integers(x, order, SEED, 8, 4.0)


def on_a_grid(x: Tensor, order: int) -> Results:
    return CPU.to_grid(x, order, SEED)


def heads(x: Tensor, order: int) -> Results:
    return CPU.encode_heads(x.float(), CODE, UNIT, SEED, False, torch.ones(1, order), len(x))


@pytest.mark.parametrize("kernel", [rotated, encoded, encoded_about_a_center, integers, on_a_grid, heads])
@settings(deadline=None, max_examples=25)
@given(
    tokens=st.integers(5, 21),
    width=st.sampled_from([8, 24, 48, 72, 192, 576, 1536]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_alone_as_among_others(
    kernel: Callable[[Tensor, int], Results], tokens: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    x = (gaussian(tokens, width, seed=seed) * (1 + torch.arange(tokens))[:, None]).to(dtype)
    if kernel is encoded_about_a_center:
        x += CPU.rotate_tokens(torch.ones(1, width), width, SEED).to(dtype)
    together = kernel(x, width)
    for first, last in ((0, 1), (1, 3), (tokens - 4, tokens)):
        for all_tokens, some in zip(together, kernel(x[first:last].clone(), width), strict=True):
            if all_tokens is not None:
                assert some is not None and torch.equal(all_tokens[first:last], some)
