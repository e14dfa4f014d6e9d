"""A transformers cache that keeps keys and values packed.

Each head's vector of a token becomes one uint8 vector (see `cache_codes`). Since that makes a tensor again, (batch,
heads, tokens, bytes), cropping and reordering are transformers' own. Growing is in place, in room that is kept for
more tokens (see `packed_room`); a single new token looks at packed keys and values (see `packed_attention`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from ..base.errors import NestQuantError
from ..codecs.vectors import VectorCode
from . import operators
from .cache_codes import CacheCodes, check_heads, pack_heads, round_heads, unpack_heads
from .packed_attention import PackedStates, can_attend
from .packed_room import append, last


class _Packed(DynamicLayer):
    """A cache layer that stores packed keys and values.

    Attributes:
        codes: codes of keys and values.
        seed: seed of the rotation signs; None does not rotate.
    """

    codes: CacheCodes
    seed: int | None
    _number: int  # what operators know the codes by

    def _set_codes(self, codes: CacheCodes, seed: int | None) -> None:
        self.codes, self.seed, self._number = codes, seed, operators.register_codes(codes)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._number = operators.register_codes(self.codes)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        check_heads(self.codes.keys, key_states)
        self.keys = self._empty(key_states, self.codes.keys)
        self.values = self._empty(value_states, self.codes.values)

    def _empty(self, states: Tensor, code: VectorCode) -> Tensor:
        size = code.vector_bytes(states.shape[-1])
        return torch.empty(*states.shape[:2], 0, size, dtype=torch.uint8, device=states.device)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Appends states (batch, heads, new tokens, head size); returns those that the new tokens may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        grow = self._grow_compiled if torch.compiler.is_compiling() else self._grow
        keys, values = grow(self.keys, key_states, True), grow(self.values, value_states, False)
        self.keys, self.values = self._kept(keys[0]), self._kept(values[0])
        self._count(key_states.shape[-2])
        return _straight_through(keys[1], key_states), _straight_through(values[1], value_states)

    def rounded(self, states: Tensor, keys: bool) -> Tensor:
        """What is seen of states (batch, heads, tokens, head size) that come first."""
        first = self._first_compiled if torch.compiler.is_compiling() else self._first
        return _straight_through(first(states, keys)[1], states)

    def _first(self, states: Tensor, keys: bool) -> tuple[Tensor, Tensor]:
        """The first tokens packed, and what that stands for."""
        return round_heads(states, self.codes.keys if keys else self.codes.values, self.seed)

    def _first_compiled(self, states: Tensor, keys: bool) -> tuple[Tensor, Tensor]:
        packed, rounded = operators.round_states(states.detach(), self._number, keys, self.seed)
        return packed, rounded

    def _grow(self, stored: Tensor, states: Tensor, keys: bool) -> tuple[Tensor, Tensor]:
        """The packed tokens with new ones, and those of them to be looked at, decoded or to be decoded when needed."""
        code = self.codes.keys if keys else self.codes.values
        if stored.shape[2] == 0:
            return self._first(states, keys)
        grown, size = append(stored, pack_heads(states, code, self.seed)), states.shape[-1]
        seen = self._seen(grown, states.shape[-2])
        if states.shape[-2] == 1 and can_attend(code, size, self.seed, states.device):
            return grown, PackedStates(seen, size, code, self.seed, states.dtype)
        return grown, unpack_heads(seen, size, code, self.seed, states.dtype)

    def _grow_compiled(self, stored: Tensor, states: Tensor, keys: bool) -> tuple[Tensor, Tensor]:
        """The same by operators, always decoded."""
        if stored.shape[2] == 0:
            return self._first_compiled(states, keys)
        which, states = (self._number, keys, self.seed), states.detach()
        grown = torch.cat([stored, operators.pack_states(states, *which)], dim=2)
        return grown, operators.unpack_states(self._seen(grown, states.shape[-2]), states, *which)

    def _kept(self, packed: Tensor) -> Tensor:
        return packed

    def _seen(self, packed: Tensor, new: int) -> Tensor:
        return packed

    def _count(self, new: int) -> None:
        """Called with the number of tokens that came."""


def _straight_through(seen: Tensor, states: Tensor) -> Tensor:
    """What is seen (…, tokens, size), the last tokens of it as differentiable as the new states that they are."""
    if not (torch.is_grad_enabled() and states.requires_grad):
        return seen
    nothing = states - states.detach()
    return seen + F.pad(nothing, (0, 0, seen.shape[-2] - states.shape[-2], 0))


class PackedLayer(_Packed):
    """Keys and values of one layer, all of them."""

    def __init__(self, codes: CacheCodes, seed: int | None) -> None:
        super().__init__()
        self._set_codes(codes, seed)


class PackedSlidingLayer(_Packed, DynamicSlidingWindowLayer):
    """Keys and values of one layer, the last `sliding_window` of them."""

    def __init__(self, codes: CacheCodes, seed: int | None, sliding_window: int) -> None:
        super().__init__(sliding_window=sliding_window)
        self._set_codes(codes, seed)

    def _kept(self, packed: Tensor) -> Tensor:
        # Assisted generation may take tokens back: it records the past, and `crop` restores the window.
        if self.record_past:
            return packed
        kept = self.sliding_window - 1
        if torch.compiler.is_compiling():
            return packed[:, :, max(0, packed.shape[2] - kept) :]
        return last(packed, kept)

    def _seen(self, packed: Tensor, new: int) -> Tensor:
        return packed[:, :, -(self.sliding_window - 1 + new) :]

    def _count(self, new: int) -> None:
        self.cumulative_length += new


class PackedCache(DynamicCache):
    """A cache for a model with coded keys and values.

    Args:
        config: configuration of the model; says which layers have a sliding window.
        per_layer: codes of keys and values, one item a layer.
        seed: seed of the rotation signs; None does not rotate.

    Raises:
        NestQuantError: a layer keeps something else than keys and values.
    """

    def __init__(self, config: PretrainedConfig, per_layer: list[CacheCodes], seed: int | None) -> None:
        super().__init__(config=config)
        pack_layers(self, config, per_layer, seed)

    def packed_bytes(self) -> int:
        """Bytes held for keys and values, with the room for more tokens."""
        total = 0
        for layer in self.layers:
            for part in ("keys", "values"):
                stored = getattr(layer, part)
                total += 0 if stored is None else stored.untyped_storage().nbytes()
        return total


class RoundingCache(PackedCache):
    """Hands out keys and values as a packed cache that was empty would, and keeps none of them.

    So a layer may run again, as gradient checkpointing has it, and any number of threads may share one.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """States (batch, heads, tokens, head size), rounded, with straight-through gradients."""
        layer: Any = self.layers[layer_idx]
        check_heads(layer.codes.keys, key_states)
        return layer.rounded(key_states, True), layer.rounded(value_states, False)


def pack_layers(cache: Cache, config: PretrainedConfig, per_layer: list[CacheCodes], seed: int | None) -> None:
    """Replaces the layers of an empty dynamic cache by packed ones, in place."""
    layers: list[Any] = []
    for layer, codes in zip(plain_layers(config), per_layer, strict=True):
        if isinstance(layer, DynamicSlidingWindowLayer):
            layers.append(PackedSlidingLayer(codes, seed, layer.sliding_window))
        else:
            layers.append(PackedLayer(codes, seed))
    recording = any(getattr(layer, "record_past", False) for layer in cache.layers)  # assisted generation asks for it
    cache.layers = layers
    cache.layer_class_to_replicate = None
    if recording:
        cache.activate_past_recording()


def plain_layers(config: PretrainedConfig) -> list[DynamicLayer]:
    """The 16-bit layers of an empty cache.

    Raises:
        NestQuantError: a layer keeps something else than keys and values.
    """
    layers: list[Any] = DynamicCache(config=config).layers
    for layer in layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise NestQuantError(
                f"the cache has a {type(layer).__name__}",
                "keys and values cannot be quantized",
                "quantize this model with --kv-bits 16",
            )
    return layers


def is_packed(cache: Cache) -> bool:
    """Whether every layer of a cache is packed."""
    return bool(cache.layers) and all(isinstance(layer, _Packed) for layer in cache.layers)
