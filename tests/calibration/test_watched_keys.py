"""Keys that show which queries they meet, in torch's attention and in products, however heads are repeated."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nestquant_cli.calibration.watched_keys import WatchedKeys
from tests.families import gaussian

HEADS, GROUP, TOKENS, SIZE = 2, 3, 16, 16  # as many tokens as channels: a shape does not tell them apart


def states() -> tuple[Tensor, Tensor, Tensor]:
    query, keys, values = (gaussian(1, n * HEADS, TOKENS, SIZE, seed=n + i) for i, n in enumerate((GROUP, 1, 1)))
    return query * torch.arange(1, SIZE + 1), keys, values


def expected(query: Tensor) -> Tensor:
    """Sums of squares by head of the keys and channel: neighboring queries share a head."""
    return query[0].double().square().sum(1).view(HEADS, GROUP, SIZE).sum(1).flatten()


def watched(keys: Tensor) -> tuple[WatchedKeys, Tensor]:
    sums = torch.zeros(HEADS * SIZE, dtype=torch.float64)
    return WatchedKeys.of(keys, sums.add_), sums


def repeated(x: Tensor) -> Tensor:
    """As `repeat_kv` of transformers."""
    return x[:, :, None, :, :].expand(1, HEADS, GROUP, TOKENS, SIZE).reshape(1, HEADS * GROUP, TOKENS, SIZE)


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
WAYS: dict[str, Attend] = {
    "grouped": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
    "repeated": lambda q, k, v: F.scaled_dot_product_attention(q, repeated(k), value=repeated(v)),
    "interleaved": lambda q, k, v: F.scaled_dot_product_attention(
        q, k.repeat_interleave(GROUP, 1), v.repeat_interleave(GROUP, 1).contiguous()
    ),
    "product": lambda q, k, v: torch.softmax(torch.matmul(q, repeated(k).transpose(2, 3)), -1) @ repeated(v),
    "flat product": lambda q, k, v: torch.bmm(q[0], repeated(k).reshape(-1, TOKENS, SIZE).mT),
    "by batches": lambda q, k, v: q.view(1, HEADS, GROUP, TOKENS, SIZE) @ k[:, :, None].float().transpose(-1, -2),
}


@pytest.mark.parametrize("way", WAYS)
def test_attention_sees_what_it_would_and_its_queries_are_counted(way: str) -> None:
    query, keys, values = states()
    seen, sums = watched(keys)
    found = WAYS[way](query, seen, values)
    assert type(found) is Tensor and torch.equal(found, WAYS[way](query, keys, values))
    torch.testing.assert_close(sums, expected(query), rtol=1e-6, atol=0)


def test_other_uses_are_those_of_ordinary_keys() -> None:
    query, keys, _ = states()
    seen, sums = watched(keys)
    uses: list[Callable[[Tensor], Any]] = [
        lambda x: x + 1,
        lambda x: torch.cat([x, x], dim=2),
        lambda x: x.clone(),
        lambda x: x.cpu().detach(),
        lambda x: torch.einsum("bhtd,bhsd->bhts", x, x),
        lambda x: torch.matmul(x, torch.ones(SIZE, 2)),
        copy.deepcopy,
    ]
    for use in uses:
        found = use(seen)
        assert type(found) is Tensor and torch.equal(found, use(keys))
    assert seen.shape == keys.shape and seen.dtype == keys.dtype and len(seen) == 1
    assert not sums.any()
    rotated = seen * 2  # keys that are changed behind the cache are no more what it stores
    F.scaled_dot_product_attention(query, repeated(rotated), repeated(keys))
    assert not sums.any()


def test_in_bfloat16_and_in_inference_mode() -> None:
    query, keys, values = (x.bfloat16() for x in states())
    with torch.inference_mode():
        seen, sums = watched(keys.clone())
        found = WAYS["grouped"](query, seen, values)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(sums, expected(query), rtol=1e-6, atol=0)
