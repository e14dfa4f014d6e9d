"""A sample of a layer's keys and values, taken by a cache that attention can update and that keeps nothing."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache

from ..modules.fresh_layers import FreshLayers
from ..modules.packed_layers import can_pack
from .current_window import choose, current_window, window_generator
from .watched_keys import WatchedKeys

TOKENS = 512  # tokens of a layer whose keys and values are kept for the fit: 512 vectors of each head


class Sample(NamedTuple):
    """What a layer's cache was given.

    Attributes:
        keys, values: (heads, tokens, head size) float32, some of them.
        queries: (windows, heads, head size) float64, sums of the squares of all queries that met the keys of a head;
            zeros where they were not watched, or not seen.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor

    @staticmethod
    def join(parts: "list[Sample]") -> "Sample":
        """One sample of the samples of all processes, in order."""
        keys, values, queries = zip(*parts, strict=True)
        return Sample(torch.cat(keys, 1), torch.cat(values, 1), torch.cat(queries))


class KVObserver(DynamicCache):
    """A cache that attention can update, which keeps a sample of keys and values, and no past of whatever kind.

    Args:
        config: the model's configuration.
        share: fraction of each update's tokens that are kept.
        queries: whether the queries that meet the keys are watched, too.

    Attributes:
        sizes: head sizes of keys and values by layer, where there were any.
    """

    def __init__(self, config: PretrainedConfig, share: float, queries: bool = False) -> None:
        super().__init__(config=config)
        self.layers = FreshLayers(self.layers)
        self.share = share
        self.watching, self._of_queries = False, queries
        self._seed = self._first = 0
        self.sizes: dict[int, tuple[int, int]] = {}
        self.keys: dict[int, Tensor] = {}  # (heads, tokens, head size) of each window
        self.values: dict[int, Tensor] = {}
        self.queries: dict[int, Tensor] = {}  # (heads · head size,) of each window

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
            self.queries[window] = sums = key_states.new_zeros(
                key_states.shape[1] * key_states.shape[3], dtype=torch.float64, device="cpu"
            )
            if self._of_queries:
                key_states = WatchedKeys.of(key_states, sums.add_)
        return key_states, value_states

    def take(self) -> Sample | None:
        """What came since the last call, in the order of windows; None if no cache was updated."""
        if not self.keys:
            return None
        order = sorted(self.keys)
        keys, values = (torch.cat([kept[window] for window in order], 1) for kept in (self.keys, self.values))
        queries = torch.stack([self.queries[window] for window in order]).view(-1, keys.shape[0], keys.shape[2])
        self.keys, self.values, self.queries = {}, {}, {}
        return Sample(keys, values, queries)

    def _sample(self, x: Tensor, generator: torch.Generator) -> Tensor:
        heads = x.transpose(0, 1).flatten(1, 2)  # (heads, batch · tokens, head size)
        count = min(heads.shape[1], max(1, round(heads.shape[1] * self.share)))
        return heads[:, choose(heads.shape[1], count, generator).to(x.device)].float().cpu()
