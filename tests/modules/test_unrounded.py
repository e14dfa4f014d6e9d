"""Windows and sinks: however tokens come, each query sees the same tokens unrounded."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.models.structure import find_decoder
from nestquant_cli.modules import packed_attention
from nestquant_cli.modules.attach import attach_cache
from nestquant_cli.modules.cache import PackedCache
from nestquant_cli.modules.cache_codes import CacheCodes, pack_heads, unpack_heads
from nestquant_cli.modules.layout import Layout
from nestquant_cli.modules.mixed_states import MixedStates
from nestquant_cli.modules.unrounded import SLACK, Unrounded, starts_of
from tests.families import CONFIGS, gaussian, make_model, random_ids, relative_error

SEED, TOKENS = 1, 30
SHAPE = shape_for_bits(3)
CODE = ScaledCode(SHAPE.with_multipliers((2, 3, 4, 5, 6, 7, 8, 9, 10)[: SHAPE.k]), 0.9 / SHAPE.q)
CHOICES = [Unrounded(5, 0), Unrounded(0, 3), Unrounded(5, 3), Unrounded(TOKENS, 0)]


def with_cache(family: str, unrounded: Unrounded) -> Any:
    """A model in float64, in which the order of sums changes no code, with a cache of coarse codes."""
    model: Any = make_model(family).double()
    decoder = find_decoder(model)
    codes = [CacheCodes(CODE, CODE)] * len(decoder.layers)
    layout = Layout(None, None, SHAPE, SEED, cache=codes, unrounded=unrounded)
    attach_cache(model, decoder, layout)
    return model


def positions(mask: Tensor) -> Tensor:
    """Position ids as generate() has them: keys are coded behind the position embedding."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def in_parts(model: Any, ids: Tensor, mask: Tensor, sizes: Iterator[int] | Any) -> Tensor:
    """Logits of tokens that come so many at a time."""
    cache, found, seen, places = None, [], 0, positions(mask)
    with torch.no_grad():
        for part in ids.split(sizes, dim=1):
            new, seen = slice(seen, seen + part.shape[1]), seen + part.shape[1]
            given = {"attention_mask": mask[:, :seen], "position_ids": places[:, new]}
            out = model(part, past_key_values=cache, use_cache=True, **given)
            cache = out.past_key_values
            found.append(out.logits)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("family", sorted(CONFIGS))
@pytest.mark.parametrize("unrounded", CHOICES)
def test_all_at_once_equals_one_by_one(family: str, unrounded: Unrounded, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = with_cache(family, unrounded), random_ids(2, TOKENS)
    mask = torch.ones_like(ids)
    with monkeypatch.context() as patch:  # of one token all that it sees is one tensor
        patch.setattr(packed_attention, "_attention", lambda *args, **kwargs: None)
        expected = in_parts(model, ids, mask, 1)
    rounded = in_parts(with_cache(family, Unrounded()), ids, mask, TOKENS)
    alone = family == "mistral" and not unrounded.window  # all its layers slide, and such layers have no sinks
    assert (relative_error(rounded, expected) > 1e-3) is not alone  # the window matters
    assert relative_error(in_parts(model, ids, mask, TOKENS), expected) < 1e-6
    assert relative_error(in_parts(model, ids, mask, 7), expected) < 1e-6
    assert relative_error(in_parts(model, ids, mask, [11, 1, 1, 1, 16]), expected) < 1e-4
    assert relative_error(in_parts(model, ids, mask, 1), expected) < 1e-4
    with torch.no_grad():
        assert relative_error(model(ids, use_cache=False).logits, expected) < 1e-6


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
@pytest.mark.parametrize("unrounded", CHOICES[:3])
def test_padding_on_the_left_changes_nothing(family: str, unrounded: Unrounded) -> None:
    model, ids, padding = with_cache(family, unrounded), random_ids(1, TOKENS), 9
    whole = torch.ones_like(ids)
    expected = in_parts(model, ids, whole, TOKENS)[0]
    padded = torch.cat([torch.zeros(1, padding, dtype=torch.int64), ids], dim=1)
    both = torch.cat([padded, random_ids(1, TOKENS + padding, seed=2)])
    mask = torch.ones_like(both)
    mask[0, :padding] = 0
    for sizes in (TOKENS + padding, 5, [20, *[1] * (TOKENS + padding - 20)]):
        assert relative_error(in_parts(model, both, mask, sizes)[0, padding:], expected) < 1e-4
    with torch.no_grad():
        found = model(both, attention_mask=mask, position_ids=positions(mask), use_cache=False).logits[0, padding:]
    assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_gradients_pass_a_window(implementation: str) -> None:
    model, ids = with_cache("llama", Unrounded(5, 3)), random_ids(2, 12)
    model.set_attn_implementation(implementation)
    model.train()
    plain = model(ids, use_cache=False).logits
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again = model(ids, use_cache=False).logits
    assert relative_error(again, plain) < 1e-6
    found = [torch.autograd.grad(each.square().sum(), [*model.parameters()]) for each in (plain, again)]
    assert all(relative_error(one, other) < 1e-6 for one, other in zip(*found, strict=True) if other.any())


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize(
    "ways",
    [
        {},
        {"num_beams": 3},
        {"num_return_sequences": 2, "num_beams": 2},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 5},
    ],
)
def test_generation_equals_that_with_decoded_states(
    family: str, ways: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_cache(family, Unrounded(5, 3))
    ids = random_ids(1, 4).repeat(1 if "prompt_lookup_num_tokens" in ways else 2, 4)
    fixed = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False}

    def run() -> Tensor:
        result: Tensor = model.generate(ids, **fixed, **ways)
        return result

    found = run()
    if "prompt_lookup_num_tokens" in ways:  # drafts are taken back, and what they moved out of the window returns
        assert torch.equal(found, model.generate(ids, **fixed))
    with monkeypatch.context() as patch:
        patch.setattr(packed_attention, "_attention", lambda *args, **kwargs: None)
        assert torch.equal(found, run())


def states(tokens: int, seed: int = 0) -> Tensor:
    return gaussian(2, 2, tokens, 16, seed=seed)


def rounded(x: Tensor) -> Tensor:
    return unpack_heads(pack_heads(x, CODE, SEED), 16, CODE, SEED, x.dtype)


OPERATIONS = ("one", "one", "one", "several", "crop", "reorder", "repeat", "select", "deepcopy", "reset")


@settings(deadline=None, max_examples=40)
@given(
    operations=st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(1, 9)), min_size=3, max_size=14),
    window=st.sampled_from([0, 1, 4]),
    sinks=st.sampled_from([0, 3]),
)
def test_any_order_of_operations(operations: list[tuple[str, int]], window: int, sinks: int) -> None:
    unrounded, last = Unrounded(window, sinks), 1
    config: Any = CONFIGS["llama"]()
    config.num_hidden_layers = 1
    cache = PackedCache(config, [CacheCodes(CODE, CODE)], SEED, unrounded)
    past = states(0)
    for seed, (name, size) in enumerate(operations):
        total = past.shape[2]
        if name in ("one", "several"):
            new = states(1 if name == "one" else size, seed)[: past.shape[0]]
            new = new if len(new) == len(past) else new[:1].expand(len(past), -1, -1, -1).contiguous()
            past, last = torch.cat([past, new], dim=2), new.shape[2]
            for found, factor in zip(cache.update(new, 2 * new, 0), (1, 2), strict=True):
                check(found, factor * past, new.shape[2], unrounded)
        elif total and name == "crop":
            taken = min(size, total - 1, last - 1, SLACK)  # drafts of the last update
            cache.crop(-taken)
            past, last = past[:, :, : total - taken], last - taken
        elif total and name == "reorder":
            cache.reorder_cache(torch.LongTensor([*range(1, len(past)), 0]))
            past = past.roll(-1, 0)
        elif total and name == "repeat" and len(past) < 3:
            cache.batch_repeat_interleave(2)
            past = past.repeat_interleave(2, 0)
        elif total and name == "select":
            cache.batch_select_indices(torch.arange(len(past))[:2])
            past = past[:2]
        elif name == "deepcopy":
            other = copy.deepcopy(cache)
            cache.update(
                states(3, 99)[:1].expand(len(past), -1, -1, -1), states(3)[:1].expand(len(past), -1, -1, -1), 0
            )
            cache = other
        elif name == "reset":
            cache.reset()
            past = past[:2, :, :0] if len(past) > 1 else past[:, :, :0]


def check(found: Tensor, past: Tensor, new: int, unrounded: Unrounded) -> None:
    """Each query sees what the rule says."""
    tokens, coded = past.shape[2], rounded(past)
    column = torch.arange(tokens)
    for row in range(new):
        own = tokens - new + row
        seen = (own - column < unrounded.window) | (column < unrounded.sinks)
        expected = torch.where(seen[:, None], past, coded)[:, :, : own + 1]
        if isinstance(found, MixedStates):
            mask = found.reach.mask(range(row, row + 1), range(tokens), past.device)[0, :, None]
            of_row = torch.where(mask, found.unrounded, found.rounded)
        else:
            of_row = found + 0
        assert torch.equal(of_row[:, :, : own + 1], expected)


def test_memory_is_that_of_the_window() -> None:
    config: Any = CONFIGS["llama"]()
    caches = [
        PackedCache(config, [CacheCodes(CODE, CODE)] * config.num_hidden_layers, SEED, Unrounded(8, 2 * on))
        for on in (0, 1)
    ]
    for cache in caches:
        cache.update(states(500), states(500), 0)
        cache.update(states(1), states(1), 0)
    vector = 2 * 2 * 2 * 16 * 4  # keys and values of a token in float32
    few, more = (cache.packed_bytes() for cache in caches)
    assert more - few == 2 * vector
    bytes_of_token = 2 * 2 * 2 * CODE.vector_bytes(16)
    assert few <= 540 * bytes_of_token + (8 + SLACK + 20) * vector


def test_where_sequences_begin() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    found = starts_of(mask)
    assert found is not None and found.tolist() == [2, 0, 4]
    four = (mask[:, None, None] != 0) & torch.ones(4, 4, dtype=torch.bool).tril()
    added = torch.zeros(four.shape).masked_fill(~four, torch.finfo(torch.float32).min)
    for each in (four, added):
        found = starts_of(each)
        assert found is not None and found.tolist() == [2, 0, 4]
    assert starts_of(mask[1:2]) is None and starts_of(None) is None and starts_of(mask[0]) is None


def test_compiled_graphs_are_refused() -> None:
    model = with_cache("llama", Unrounded(4))
    with pytest.raises(NestQuantError, match=r"not for torch\.compile"):
        torch.compile(model, backend="eager")(random_ids(1, 8))
