"""Attention to states of which each query sees some unrounded equals that of each query by itself."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.modules import mixed_states
from nestquant_cli.modules.mixed_states import MixedStates
from nestquant_cli.modules.unrounded import Reach
from tests.families import gaussian, relative_error

BATCH, HEADS, SIZE = 2, 2, 16


def reach(tokens: int, new: int, window: int, kept: int, sinks: int, padded: bool) -> Reach:
    starts = torch.tensor([0, 5]) if padded else None
    return Reach(tokens, new, window, min(kept, tokens), sinks, min(sinks + 5 * padded, tokens), starts)


def mixed(of: Reach) -> tuple[MixedStates, MixedStates]:
    made = []
    for number in range(2):
        rounded, unrounded = (gaussian(BATCH, HEADS, of.tokens, SIZE, seed=number + seed) for seed in (0, 10))
        made.append(MixedStates(rounded, unrounded, of, number == 0))
    return made[0], made[1]


def expected_of(query: Tensor, states: tuple[MixedStates, MixedStates], mask: Tensor | None, of: Reach) -> Tensor:
    """Each query of each sequence with keys and values of its own."""
    groups, out = query.shape[1] // HEADS, torch.empty(*query.shape[:3], SIZE)
    for b in range(BATCH):
        start = 0 if of.starts is None else int(of.starts[b])
        for row in range(of.new):
            own, column = of.tokens - of.new + row, torch.arange(of.tokens)
            near = (own - column < of.window) & (column >= of.tokens - of.kept)
            far = (column >= start) & (column < start + of.sinks) & (column < of.first)
            seen = (near | far)[:, None]
            keys, values = (
                torch.where(seen, each.unrounded[b], each.rounded[b]).repeat_interleave(groups, 0) for each in states
            )
            scores = (query[b, :, row, None] @ keys.mT)[:, 0] / SIZE**0.5
            if mask is not None:
                of_row = mask.expand(BATCH, 1, of.new, of.tokens)[b, 0, row]
                scores = scores.masked_fill(~of_row, -torch.inf) if mask.dtype == torch.bool else scores + of_row
            out[b, :, row] = (torch.softmax(scores, -1)[:, None] @ values)[:, 0]
    return out


CASES = [
    reach(70, 70, 6, 70, 0, False),
    reach(70, 70, 6, 70, 3, False),
    reach(70, 70, 0, 0, 3, False),
    reach(70, 70, 6, 70, 3, True),
    reach(70, 9, 6, 14, 3, True),
    reach(70, 9, 6, 11, 0, False),  # after a crop that went further back
    reach(70, 9, 100, 70, 3, False),
    reach(12, 12, 6, 12, 20, False),
]


@pytest.mark.parametrize("of", CASES)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kind", ["causal", "boolean", "added", "sliding"])
def test_torch_and_a_model_that_multiplies(of: Reach, groups: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed_states, "ROWS", 7)
    states, query = mixed(of), gaussian(BATCH, HEADS * groups, of.new, SIZE, seed=3)
    row, column = torch.arange(of.new)[:, None] + of.tokens - of.new, torch.arange(of.tokens)
    causal = (column <= row).expand(BATCH, 1, of.new, of.tokens)
    if kind == "sliding":
        causal = causal & (column > row - 20)
    if of.starts is not None:
        causal = causal & ((column >= of.starts[:, None])[:, None, None] | (column == row))
    added = gaussian(BATCH, 1, of.new, of.tokens, seed=4).masked_fill(~causal, torch.finfo(torch.float32).min)
    mask = added if kind == "added" else causal
    expected = expected_of(query, states, mask, of)
    arguments: dict[str, Any] = {"attn_mask": mask}
    if kind == "causal" and of.tokens == of.new and of.starts is None:
        arguments = {"is_causal": True}
    found = F.scaled_dot_product_attention(query, *states, enable_gqa=True, **arguments)
    assert relative_error(found, expected) < 1e-5
    keys, values = (
        each[:, :, None, :, :].expand(BATCH, HEADS, groups, of.tokens, SIZE).reshape(BATCH, -1, of.tokens, SIZE)
        for each in states
    )
    assert relative_error(F.scaled_dot_product_attention(query, keys, values, **arguments), expected) < 1e-5
    scores = torch.matmul(query, keys.transpose(2, 3)) * SIZE**-0.5
    scores = scores + mask if mask is added else scores.masked_fill(~causal, -torch.inf)
    assert relative_error(torch.matmul(torch.softmax(scores, -1), values), expected) < 1e-5


def test_gradients_go_to_what_was_seen() -> None:
    of = reach(12, 12, 4, 12, 2, False)
    states, query = mixed(of), gaussian(BATCH, HEADS, 12, SIZE, seed=3)
    leaves = [part.requires_grad_() for each in states for part in (each.rounded, each.unrounded)]
    again = [MixedStates(each.rounded, each.unrounded, of, each.keys) for each in states]
    F.scaled_dot_product_attention(query, *again, is_causal=True).square().sum().backward()
    found = [leaf.grad for leaf in leaves]
    mask = torch.ones(12, 12, dtype=torch.bool).tril()[None, None]
    for leaf in leaves:
        leaf.grad = None
    expected_of(query, states, mask, of).square().sum().backward()
    for one, leaf in zip(found, leaves, strict=True):
        assert one is not None and leaf.grad is not None and relative_error(one, leaf.grad) < 1e-5


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x + 1,
        lambda x: torch.cat([x, x], dim=2),
        lambda x: F.pad(x, (0, 8)),
        lambda x: torch.einsum("bhtd->bhd", x),
        lambda x: x @ x,
        lambda x: x @ torch.ones(16, 2),
        lambda x: torch.ones(5, 70) @ x.mT,
        lambda x: F.scaled_dot_product_attention(torch.ones(2, 2, 9, 16), x, torch.ones(2, 2, 70, 16)),
        lambda x: F.scaled_dot_product_attention(torch.ones(2, 2, 5, 16), x, x),
        lambda x: x.numpy(),
        lambda x: repr(x),
    ],
)
def test_anything_else_is_refused(use: Any) -> None:
    with pytest.raises(NestQuantError, match="of which each query sees some unrounded"):
        use(mixed(reach(70, 9, 6, 14, 0, False))[0])
