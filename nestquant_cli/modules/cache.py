"""A transformers cache that keeps keys and values packed.

Each head's vector of a token becomes one uint8 vector (see `cache_codes`). Since that makes a tensor again, (batch,
heads, tokens, bytes), cropping and reordering are transformers' own. Growing is in place, in room that is kept for
more tokens (see `packed_room`); a single new token looks at packed keys and values (see `packed_attention`). Layers
without codes are the model's own: those of recurrences and convolutions, and those without attention.
"""

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, DynamicCache

from ..base.errors import NestQuantError
from .cache_codes import CacheCodes, check_heads
from .fresh_layers import FreshLayers
from .packed_layers import Packed, can_pack, packed_form
from .unrounded import ALL_ROUNDED, Padding, Unrounded, starts_of

PerLayer = Sequence[CacheCodes | None]  # codes of keys and values by layer; None for a layer that keeps its own form


class PackedCache(DynamicCache):
    """A cache for a model with coded keys and values.

    Args:
        config: configuration of the model; says what each layer keeps.
        per_layer: codes of keys and values, one item a layer; None for a layer without coded ones.
        seed: seed of the rotation signs; None does not rotate.
        unrounded: which tokens are seen unrounded.

    Raises:
        NestQuantError: a layer with codes keeps no keys and values, or keeps them in a way of its own.
    """

    def __init__(
        self, config: PretrainedConfig, per_layer: PerLayer, seed: int | None, unrounded: Unrounded = ALL_ROUNDED
    ) -> None:
        super().__init__(config=config)
        pack_layers(self, config, per_layer, seed, unrounded)

    def packed_bytes(self) -> int:
        """Bytes held for keys and values, with the room for more tokens."""
        total = 0
        for layer in self.layers:
            unrounded = [states for kept in getattr(layer, "kept", None) or () for states in kept]
            for stored in (getattr(layer, "keys", None), getattr(layer, "values", None), *unrounded):
                total += 0 if stored is None else stored.untyped_storage().nbytes()
        return total


class RoundingCache(PackedCache):
    """Hands out keys and values as a packed cache that was empty would, and keeps nothing.

    So a layer may run again, as gradient checkpointing has it, and any number of threads may share one.
    """

    def __init__(
        self, config: PretrainedConfig, per_layer: PerLayer, seed: int | None, unrounded: Unrounded = ALL_ROUNDED
    ) -> None:
        super().__init__(config, per_layer, seed, unrounded)
        self._empty, self._sinks = self.layers, bool(unrounded.sinks)
        self._starts: Tensor | None = None
        self.layers = FreshLayers(self._empty)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """States (batch, heads, tokens, head size), rounded, with straight-through gradients."""
        layer = self._empty[layer_idx]
        if not isinstance(layer, Packed):
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        check_heads(layer.codes.keys, key_states)
        return layer.update_none(key_states, value_states, self._starts)

    def behind(self, mask: object) -> "RoundingCache":
        """The cache for a call of attention with this mask, which tells where sequences begin."""
        starts = starts_of(mask) if self._sinks else None
        if starts is None:
            return self
        made = copy.copy(self)
        made._starts = starts
        return made


class _Maker:
    """Makes the layers of a cache that transformers lengthens as layers come."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = iter(layers)

    def __call__(self) -> Any:
        return next(self.layers)


def pack_layers(
    cache: Cache,
    config: PretrainedConfig,
    per_layer: PerLayer,
    seed: int | None,
    unrounded: Unrounded = ALL_ROUNDED,
) -> None:
    """Replaces the layers of an empty dynamic cache by packed ones, in place, where they have codes."""
    there: list[Any] = DynamicCache(config=config).layers
    if len(there) != len(per_layer):
        raise _misfit(f"cache codes for {len(per_layer)} layers, and the model's cache has {len(there)}")
    padding = Padding()
    layers = [
        layer if codes is None else _packed(layer, codes, seed, unrounded, padding)
        for layer, codes in zip(there, per_layer, strict=True)
    ]
    cache.padding = padding  # type: ignore[attr-defined]
    recording = any(getattr(layer, "record_past", False) for layer in cache.layers)  # assisted generation asks for it
    if type(cache).__len__ is not Cache.__len__ and cache.layer_class_to_replicate is not None:
        maker: Any = _Maker(layers)  # the model counts layers in a way of its own, so they have to come one by one
        cache.layer_class_to_replicate = maker
        return
    cache.layers = layers
    cache.layer_class_to_replicate = None
    if recording:
        cache.activate_past_recording()


def _packed(layer: Any, codes: CacheCodes, seed: int | None, unrounded: Unrounded, padding: Padding) -> Any:
    if not can_pack(layer):
        raise _misfit(f"cache codes for a {type(layer).__name__}")
    return packed_form(layer, codes, seed, unrounded, padding)


def _misfit(what: str) -> NestQuantError:
    return NestQuantError(
        f"config.json has {what}", "the checkpoint was not loaded", "fetch or quantize the checkpoint again"
    )


def is_packed(cache: Cache) -> bool:
    """Whether a cache has packed layers."""
    made: Any = cache.layer_class_to_replicate
    return isinstance(made, _Maker) or any(isinstance(layer, Packed) for layer in cache.layers)


def begin_behind(cache: Any, mask: object) -> None:
    """Tells a packed cache where its sequences begin, for its sinks.

    Args:
        cache: a packed cache.
        mask: the attention mask of a forward, (batch, tokens), of the past tokens and of the new ones.
    """
    cache.padding.starts = starts_of(mask) if isinstance(mask, Tensor) and mask.dim() == 2 else None
