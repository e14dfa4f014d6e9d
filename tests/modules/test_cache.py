"""The packed cache: transformers' own operations on packed bytes equal those on what the bytes stand for."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, PretrainedConfig
from transformers.cache_utils import DynamicCache

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.modules.cache import PackedCache, is_packed, pack_layers
from nestquant_cli.modules.cache_codes import CacheCodes, pack_heads, unpack_heads
from tests.families import CONFIGS, WINDOW, gaussian, relative_error

SEED, HEAD = 4, 16
KEYS = ScaledCode(shape_for_bits(4).with_multipliers((3, 4, 5, 6, 9)), 0.9 / 13 / 2)
VALUES = ScaledCode(shape_for_bits(4).with_multipliers((3, 4, 6, 9)), 1.0 / 13 / 2)
BYTES = HEAD // 8 * 4 + 2  # of one head vector: words and scale


def config(family: str = "llama") -> PretrainedConfig:
    return CONFIGS[family]()


def make(family: str = "llama") -> PackedCache:
    settings = config(family)
    return PackedCache(settings, [CacheCodes(KEYS, VALUES)] * settings.num_hidden_layers, SEED)


def states(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values (2 sequences, 3 heads, tokens, 16)."""
    return gaussian(2, 3, tokens, HEAD, seed=seed), 5 * gaussian(2, 3, tokens, HEAD, seed=seed + 1)


def read(cache: PackedCache, layer: int = 0) -> list[Tensor]:
    """What a layer's bytes stand for."""
    stored: Any = cache.layers[layer]
    parts = ((stored.keys, KEYS), (stored.values, VALUES))
    return [unpack_heads(packed, HEAD, code, SEED, torch.float32) for packed, code in parts]


def expected(x: Tensor, code: ScaledCode) -> Tensor:
    return unpack_heads(pack_heads(x, code, SEED), HEAD, code, SEED, x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_and_values_come_back_rounded_and_are_held_packed(dtype: torch.dtype) -> None:
    cache = make()
    keys, values = (part.to(dtype) for part in states(9))
    got = cache.update(keys, values, 0)
    for found, original, code in zip(got, (keys, values), (KEYS, VALUES), strict=True):
        assert found.dtype == dtype and torch.equal(found, expected(original, code))
        assert relative_error(found, original) < 0.2
    assert cache.packed_bytes() == 2 * 2 * 3 * 9 * BYTES
    assert is_packed(cache) and cache.get_seq_length() == 9


def test_token_by_token_equals_all_at_once() -> None:
    whole, steps = make(), make()
    keys, values = states(7)
    at_once = whole.update(keys, values, 1)
    for token in range(7):
        step = steps.update(keys[:, :, token : token + 1], values[:, :, token : token + 1], 1)
        assert torch.equal(step[0], at_once[0][:, :, : token + 1])
    assert torch.equal(step[1], at_once[1])


def test_crop_reorder_repeat_and_select() -> None:
    cache = make()
    keys, values = (expected(part, code) for part, code in zip(states(6), (KEYS, VALUES), strict=True))
    for layer in range(len(cache.layers)):
        cache.update(*states(6), layer)
    cache.crop(-2)
    assert torch.equal(read(cache)[0], keys[:, :, :4])
    cache.reorder_cache(torch.LongTensor([1, 0]))
    assert torch.equal(read(cache)[1], values[[1, 0], :, :4])
    cache.batch_repeat_interleave(2)
    assert torch.equal(read(cache)[0], keys[[1, 1, 0, 0], :, :4])
    cache.batch_select_indices(torch.tensor([0, 2]))
    assert torch.equal(read(cache)[1], values[[1, 0], :, :4])
    cache.reset()
    assert cache.get_seq_length() == 0


def test_sliding_layers_keep_the_window_only() -> None:
    cache = make("gemma2")
    kinds = [type(layer).__name__ for layer in cache.layers]
    assert kinds == ["PackedSlidingLayer", "PackedLayer"] * 2
    keys, values = states(3 * WINDOW)
    got = cache.update(keys, values, 0)
    assert got[0].shape[2] == 3 * WINDOW  # the prompt itself sees all of it
    assert torch.equal(read(cache)[0], expected(keys, KEYS)[:, :, -(WINDOW - 1) :])
    more = states(1, seed=9)
    assert cache.update(*more, 0)[1].shape[2] == WINDOW
    assert cache.get_seq_length(0) == 3 * WINDOW + 1


def test_no_tokens() -> None:
    cache = make()
    keys, values = cache.update(*states(0), 0)
    assert keys.shape == (2, 3, 0, HEAD) and values.shape == keys.shape


def test_a_cache_of_the_users_is_packed_in_place() -> None:
    cache = DynamicCache(config=config("gemma2"))
    assert not is_packed(cache) and not is_packed(DynamicCache())
    cache.activate_past_recording()
    pack_layers(cache, config("gemma2"), [CacheCodes(KEYS, VALUES)] * 4, SEED)
    assert is_packed(cache)
    sliding: Any = cache.layers[0]
    assert sliding.record_past  # assisted generation has asked for it


def test_codes_for_layers_that_keep_something_else_are_refused() -> None:
    hybrid = LlamaConfig(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])
    codes = CacheCodes(KEYS, VALUES)
    assert is_packed(PackedCache(hybrid, [None, codes], SEED))
    with pytest.raises(NestQuantError, match="has cache codes for a LinearAttentionLayer"):
        PackedCache(hybrid, [codes, codes], SEED)
    with pytest.raises(NestQuantError, match="has cache codes for 1 layers, and the model's cache has 2"):
        PackedCache(hybrid, [codes], SEED)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_new_states_have_the_gradient_of_what_is_seen_of_them(family: str) -> None:
    cache = make(family)
    cache.update(*states(5), 0)
    keys, values = (each.requires_grad_() for each in states(WINDOW, seed=7))
    seen = cache.update(keys, values, 0)
    weights = [gaussian(*part.shape, seed=11 + number) for number, part in enumerate(seen)]
    sum((part * weight).sum() for part, weight in zip(seen, weights, strict=True)).backward()  # type: ignore[union-attr]
    for part, weight in zip((keys, values), weights, strict=True):
        assert torch.equal(part.grad, weight[:, :, -WINDOW:])
