"""A sample of a layer's keys and values, taken by a cache that attention can update and that keeps nothing."""

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache

from ..modules.fresh_layers import FreshLayers
from ..modules.packed_layers import can_pack
from .current_window import choose, current_window, window_generator

TOKENS = 512  # tokens of a layer whose keys and values are kept for the fit: 512 vectors of each head


class KVObserver(DynamicCache):
    """A cache that attention can update, which keeps a sample of keys and values, and no past of whatever kind.

    Args:
        config: the model's configuration.
        share: fraction of each update's tokens that are kept.

    Attributes:
        sizes: head sizes of keys and values by layer, where there were any.
    """

    def __init__(self, config: PretrainedConfig, share: float) -> None:
        super().__init__(config=config)
        self.layers = FreshLayers(self.layers)
        self.share = share
        self.watching = False
        self._seed = self._first = 0
        self.sizes: dict[int, tuple[int, int]] = {}
        self.keys: dict[int, Tensor] = {}  # (heads, tokens, head size) of each window
        self.values: dict[int, Tensor] = {}

    def sees(self, index: int) -> bool:
        """Whether layer `index` keeps keys and values as transformers' own layers do."""
        return index < len(self.layers) and can_pack(self.layers[index])

    def reseed(self, seed: int, first: int = 0) -> None:
        """Makes the sample of the next layer depend on `seed` and the windows alone, not on the layers before.

        Args:
            seed: seed of the layer.
            first: number of this process's first window.
        """
        self._seed, self._first = seed, first

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        self.sizes[layer_idx] = key_states.shape[-1], value_states.shape[-1]
        if self.watching:
            window = current_window()
            generator = window_generator(self._seed, self._first + window)
            self.keys[window] = self._sample(key_states, generator)
            self.values[window] = self._sample(value_states, generator)
        return key_states, value_states

    def take(self) -> tuple[Tensor, Tensor] | None:
        """Samples (heads, tokens, head size) of keys and values since the last call; None if no cache was updated."""
        if not self.keys:
            return None
        keys, values = (
            torch.cat([samples[window] for window in sorted(samples)], 1) for samples in (self.keys, self.values)
        )
        self.keys, self.values = {}, {}
        return keys, values

    def _sample(self, x: Tensor, generator: torch.Generator) -> Tensor:
        heads = x.transpose(0, 1).flatten(1, 2)  # (heads, batch · tokens, head size)
        count = min(heads.shape[1], max(1, round(heads.shape[1] * self.share)))
        return heads[:, choose(heads.shape[1], count, generator).to(x.device)].float().cpu()
