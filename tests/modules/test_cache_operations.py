"""The packed cache under operations in any order, and caches that share a past: each holds what a plain list would."""

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.modules.cache import PackedCache
from nestquant_cli.modules.cache_codes import CacheCodes, pack_heads, unpack_heads
from tests.families import CONFIGS, WINDOW, gaussian

HEADS, SIZE, SEED = 2, 16, 4
CODE = ScaledCode(shape_for_bits(4).with_multipliers((3, 4, 5, 6, 9)), 0.9 / 13 / 2)
LAYERS = 2  # of gemma2 the first slides
MOST = 5  # caches at a time, and sequences of one


@dataclass
class Held:
    """A cache, and the tokens (batch, heads, tokens, size) of the keys that it must hold; values are twice as long."""

    cache: PackedCache
    keys: Tensor


def rounded(states: Tensor) -> Tensor:
    return unpack_heads(pack_heads(states, CODE, SEED), SIZE, CODE, SEED, states.dtype)


def empty(family: str, recording: bool) -> Held:
    config: Any = CONFIGS[family]()
    config.num_hidden_layers = LAYERS
    if family == "gemma2":
        config.layer_types = config.layer_types[:LAYERS]
    cache = PackedCache(config, [CacheCodes(CODE, CODE)] * config.num_hidden_layers, SEED)
    if recording:
        cache.activate_past_recording()
    return Held(cache, torch.empty(2, HEADS, 0, SIZE))


def update(held: Held, tokens: int, seed: int) -> Held:
    """Appends tokens, and looks at what attention would see."""
    new = gaussian(held.keys.shape[0], HEADS, tokens, SIZE, seed=seed)
    keys = torch.cat([held.keys, rounded(new)], dim=2)
    for index in range(LAYERS):
        seen = keys[:, :, -(WINDOW - 1 + tokens) :] if held.cache.layers[index].is_sliding else keys
        for found, expected in zip(held.cache.update(new, 2 * new, index), (seen, 2 * seen), strict=True):
            assert torch.equal(found, expected)
    return dataclasses.replace(held, keys=keys)


def crop(held: Held, tokens: int) -> Held:
    """Takes tokens back, as many as a sliding layer still can."""
    total = held.keys.shape[2]
    tokens = min(tokens, total - 1)
    for layer in held.cache.layers:
        if tokens > 0 and layer.is_sliding and total >= WINDOW:
            assert layer.keys is not None
            kept = layer.keys.shape[2] - tokens >= min(WINDOW - 1, total - tokens)
            tokens = tokens if kept and layer.record_past else 0
    if tokens <= 0:
        return held
    held.cache.crop(-tokens)
    return dataclasses.replace(held, keys=held.keys[:, :, :-tokens])


def on_the_batch(held: Held, name: str, size: int) -> Held:
    """What beam search and its kin do; on an empty cache it would do nothing."""
    batch = held.keys.shape[0]
    if held.keys.shape[2] == 0:
        return held
    if name == "repeat":
        if 2 * batch > MOST:
            return held
        held.cache.batch_repeat_interleave(2)
        return dataclasses.replace(held, keys=held.keys.repeat_interleave(2, dim=0))
    chosen = torch.arange(size, size + (batch if name == "reorder" else max(1, batch - 1))) % batch
    if name == "reorder":
        held.cache.reorder_cache(torch.LongTensor(chosen))
    else:
        held.cache.batch_select_indices(chosen)
    return dataclasses.replace(held, keys=held.keys[chosen])


def reset(held: Held) -> Held:
    held.cache.reset()
    return dataclasses.replace(held, keys=held.keys[:, :, :0])


def twin(held: Held, name: str, size: int) -> Held:
    """Another cache with the same past: a copy, one with the very same tensors, or one with slices of them."""
    if name == "deepcopy":
        return copy.deepcopy(held)
    cache = copy.copy(held.cache)
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    keys = held.keys
    if name == "prefix" and not any(layer.is_sliding for layer in cache.layers):
        keys = keys[:, :, :size]
        for layer in cache.layers if keys.shape[2] else []:
            stored: Any = layer
            stored.keys, stored.values = stored.keys[:, :, :size], stored.values[:, :, :size]
    return Held(cache, keys)


def look(held: Held) -> None:
    """Every layer holds what it must."""
    total = held.keys.shape[2]
    for layer in held.cache.layers:
        assert layer.get_seq_length() == total
        if total == 0:
            continue
        kept = min(total, WINDOW - 1) if layer.is_sliding else total
        for stored, factor in ((layer.keys, 1), (layer.values, 2)):
            assert stored is not None and stored.dtype == torch.uint8
            assert layer.is_sliding or stored.shape[2] == total
            found = unpack_heads(stored[:, :, stored.shape[2] - kept :], SIZE, CODE, SEED, torch.float32)
            assert torch.equal(found, factor * held.keys[:, :, total - kept :])


OPERATIONS = ("update",) * 8 + ("crop", "crop", "reorder", "repeat", "select", "reset", "deepcopy", "share", "prefix")


@pytest.mark.parametrize(("family", "recording"), [("llama", False), ("gemma2", False), ("gemma2", True)])
@settings(deadline=None, max_examples=60)
@given(
    operations=st.lists(
        st.tuples(st.integers(0, MOST), st.sampled_from(OPERATIONS), st.integers(1, 20)), min_size=3, max_size=12
    )
)
def test_any_order_of_operations(family: str, recording: bool, operations: list[tuple[int, str, int]]) -> None:
    first = update(update(empty(family, recording), 3, 0), 1, 1)
    held = [first, twin(first, "share", 0)]
    for seed, (which, name, size) in enumerate(operations, start=2):
        which %= len(held)
        if name in ("deepcopy", "share", "prefix"):
            held = [*held[-MOST + 1 :], twin(held[which], name, size)]
        elif name == "update":
            held[which] = update(held[which], 1 if size % 2 else size, seed)
        elif name == "crop":
            held[which] = crop(held[which], size)
        elif name == "reset":
            held[which] = reset(held[which])
        else:
            held[which] = on_the_batch(held[which], name, size)
        for each in held:
            look(each)
