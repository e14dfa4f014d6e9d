"""Looks at what passes: the inputs of Linears through hooks, keys and values through a cache that keeps nothing."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache

TOKENS = 512  # whose keys and values are kept of a layer: as many vectors of each head


class KVObserver(DynamicCache):
    """A cache that attention layers can update and that keeps a sample of keys and values, never the past.

    Args:
        config: the model's configuration.
        share: fraction of each update's tokens that are kept.
    """

    def __init__(self, config: PretrainedConfig, share: float) -> None:
        super().__init__(config=config)
        self.share = share
        self.watching = False
        self._seed = self._first = 0
        self.keys: dict[int, Tensor] = {}  # (heads, tokens, head size) of each window
        self.values: dict[int, Tensor] = {}

    def reseed(self, seed: int, first: int = 0) -> None:
        """Makes the choice of the next layer's sample a function of `seed` and the windows, whatever came before.

        Args:
            seed: of the layer.
            first: number of the window that is seen first.
        """
        self._seed, self._first = seed, first

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
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
        keys, values = (torch.cat([part[window] for window in sorted(part)], 1) for part in (self.keys, self.values))
        self.keys, self.values = {}, {}
        return keys, values

    def _sample(self, x: Tensor, generator: torch.Generator) -> Tensor:
        heads = x.transpose(0, 1).flatten(1, 2)  # (heads, batch · tokens, head size)
        count = min(heads.shape[1], max(1, round(heads.shape[1] * self.share)))
        return heads[:, choose(heads.shape[1], count, generator).to(x.device)].float().cpu()


class InputGroups:
    """Which Linears of a layer are called with the very same tensor, found by watching calls.

    Attributes:
        members: names of the Linears by the name of the first of each group; a Linear that was not called is in none.
        inputs: what each group was called with by the name of its first, then by window.
    """

    def __init__(self) -> None:
        self.members: dict[str, list[str]] = {}
        self.inputs: dict[str, dict[int, Tensor]] = {}

    @contextmanager
    def watch(self, linears: dict[str, nn.Linear]) -> Iterator[None]:
        """Fills both during the block."""
        seen: dict[str, dict[int, Tensor]] = {}  # in the order of calls, which is the same in every window

        def hook(name: str) -> Any:
            def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                seen.setdefault(name, {})[current_window()] = args[0]

            return see

        handles = [linear.register_forward_pre_hook(hook(name)) for name, linear in linears.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for name, own in seen.items():
            self._place(name, own)

    def _place(self, name: str, own: dict[int, Tensor]) -> None:
        for leader, inputs in self.inputs.items():
            if all(inputs.get(window) is x for window, x in own.items()):
                self.members[leader].append(name)
                return
        self.members[name], self.inputs[name] = [name], own


_place = threading.local()


@contextmanager
def in_window(number: int) -> Iterator[None]:
    """Within it, this thread works on window `number` of this process."""
    _place.window = number
    try:
        yield
    finally:
        _place.window = 0


def current_window() -> int:
    """The window that this thread works on."""
    return getattr(_place, "window", 0)


def window_generator(seed: int, window: int) -> torch.Generator:
    """What draws in one window: the choice depends on the window's number, not on who looks at the windows before."""
    return torch.Generator().manual_seed((seed * 1_000_003 + window) % (1 << 63))


def choose(total: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` different indices below `total`, in random order."""
    return torch.randperm(total, generator=generator)[:count]
