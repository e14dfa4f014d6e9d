"""A transformers cache that keeps keys and values packed.

Each head's vector of a token becomes one uint8 vector (see codecs.heads). Since that makes a tensor again, (batch,
heads, tokens, bytes), growing, cropping, sliding and reordering are transformers' own.
"""

from typing import Any

from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from ..codecs.heads import CacheCodes, pack_heads, unpack_heads
from ..errors import NestQuantError


class _Packed(CacheLayerMixin):
    """Mixed into a dynamic layer: what the layer below stores is packed."""

    codes: CacheCodes
    seed: int

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        keys, values = super().update(  # type: ignore[safe-super]
            pack_heads(key_states, self.codes.keys, self.seed), pack_heads(value_states, self.codes.values, self.seed)
        )
        return (
            unpack_heads(keys, key_states.shape[-1], self.codes.keys, self.seed, key_states.dtype),
            unpack_heads(values, value_states.shape[-1], self.codes.values, self.seed, value_states.dtype),
        )


class PackedLayer(_Packed, DynamicLayer):
    """Keys and values of one layer, all of them."""

    def __init__(self, codes: CacheCodes, seed: int) -> None:
        super().__init__()
        self.codes, self.seed = codes, seed


class PackedSlidingLayer(_Packed, DynamicSlidingWindowLayer):
    """Keys and values of one layer, the last `sliding_window` of them."""

    def __init__(self, codes: CacheCodes, seed: int, sliding_window: int) -> None:
        super().__init__(sliding_window=sliding_window)
        self.codes, self.seed = codes, seed


class PackedCache(DynamicCache):
    """A cache for a model with coded keys and values.

    Args:
        config: of the model; says which layers slide.
        per_layer: one a layer.
        seed: of the rotation signs.

    Raises:
        NestQuantError: a layer keeps something else than keys and values.
    """

    def __init__(self, config: PretrainedConfig, per_layer: list[CacheCodes], seed: int) -> None:
        super().__init__(config=config)
        pack_layers(self, config, per_layer, seed)

    def packed_bytes(self) -> int:
        """Bytes held by keys and values."""
        total = 0
        for layer in self.layers:
            for part in ("keys", "values"):
                stored = getattr(layer, part)
                total += 0 if stored is None else stored.nbytes
        return total


def pack_layers(cache: Cache, config: PretrainedConfig, per_layer: list[CacheCodes], seed: int) -> None:
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
