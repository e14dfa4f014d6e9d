"""Layers of a transformers cache that keep keys and values packed.

Whatever kind of layer a cache has, its packed form is a subclass that does the same with bytes: a layer that keeps only
a window, or the keys of an indexer, or the state of a recurrence next to its keys and values, goes on doing so.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..codecs.vectors import VectorCode
from . import operators
from .cache_codes import CacheCodes, check_heads, pack_heads, round_heads, unpack_heads
from .packed_attention import PackedStates, can_attend
from .packed_room import append, last
from .unrounded import ALL_ROUNDED, Kept, Padding, Unrounded
from .unrounded_layer import UnroundedLayer


class Packed(UnroundedLayer):
    """A cache layer that stores packed keys and values.

    Attributes:
        codes: codes of keys and values.
        seed: seed of the rotation signs; None does not rotate.
    """

    codes: CacheCodes
    seed: int | None
    _number: int  # what operators know the codes by

    def set_codes(
        self, codes: CacheCodes, seed: int | None, unrounded: Unrounded = ALL_ROUNDED, padding: Padding | None = None
    ) -> None:
        """Chooses the codes and what is unrounded; once, before the first token."""
        self.codes, self.seed, self._number = codes, seed, operators.register_codes(codes)
        self.unrounded = Unrounded(unrounded.window) if self.is_sliding else unrounded
        self.padding = Padding() if padding is None else padding

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._number = operators.register_codes(self.codes)

    def lazy_initialization(self, *states: Tensor, **others: Any) -> None:
        super().lazy_initialization(*states, **others)
        if not states:  # states of another kind, which a layer may keep besides
            return
        key_states, value_states = states
        check_heads(self.codes.keys, key_states)
        self.keys = self._empty(key_states, self.codes.keys)
        self.values = self._empty(value_states, self.codes.values)
        self.kept = (Kept.none(key_states), Kept.none(value_states)) if self.unrounded else None

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
        past = 0 if self.kept is None else self.get_seq_length()
        keys, values = grow(self.keys, key_states, True), grow(self.values, value_states, False)
        self.keys, self.values = self._kept(keys[0]), self._kept(values[0])
        self._count(key_states.shape[-2])
        seen = _straight_through(keys[1], key_states), _straight_through(values[1], value_states)
        if self.kept is not None:
            self.kept, seen = self.mixed(self.kept, seen, (key_states, value_states), past)
        return seen

    def update_none(self, key_states: Tensor, value_states: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        """What `update` of an empty layer returns for states (batch, heads, tokens, head size); nothing is kept."""
        seen = self.rounded(key_states, True), self.rounded(value_states, False)
        if not self.unrounded:
            return seen
        kept = Kept.none(key_states), Kept.none(value_states)
        return self.mixed(kept, seen, (key_states, value_states), 0, starts)[1]

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


class PackedLayer(Packed):
    """Keys and values of one layer, all of them."""

    def __init__(
        self, codes: CacheCodes, seed: int | None, unrounded: Unrounded = ALL_ROUNDED, padding: Padding | None = None
    ) -> None:
        super().__init__()
        self.set_codes(codes, seed, unrounded, padding)


class _PackedWindow(Packed, DynamicSlidingWindowLayer):
    """A packed layer that keeps the last `sliding_window` tokens."""

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


class PackedSlidingLayer(_PackedWindow):
    """Keys and values of one layer, the last `sliding_window` of them."""

    def __init__(
        self, codes: CacheCodes, seed: int | None, sliding_window: int, unrounded: Unrounded = ALL_ROUNDED
    ) -> None:
        super().__init__(sliding_window=sliding_window)
        self.set_codes(codes, seed, unrounded)


def can_pack(layer: Any) -> bool:
    """Whether a layer of a cache keeps keys and values as transformers' own layers do, whatever it keeps besides."""
    plain = (DynamicLayer.update, DynamicSlidingWindowLayer.update)
    return isinstance(layer, DynamicLayer) and type(layer).update in plain


def packed_form(
    layer: Any, codes: CacheCodes, seed: int | None, unrounded: Unrounded = ALL_ROUNDED, padding: Padding | None = None
) -> Packed:
    """A packed layer in the place of an empty one that `can_pack` accepts."""
    if type(layer) is DynamicLayer:
        return PackedLayer(codes, seed, unrounded, padding)
    if type(layer) is DynamicSlidingWindowLayer:
        return PackedSlidingLayer(codes, seed, layer.sliding_window, unrounded)
    packed = _empty(type(layer))
    packed.__dict__.update(vars(layer) | {"_layer_type": layer._layer_type})
    packed.set_codes(codes, seed, unrounded, padding)
    return packed


@lru_cache(maxsize=64)
def _packed_kind(kind: type) -> type:
    window = issubclass(kind, DynamicSlidingWindowLayer)
    # transformers would make new layers of a kind that says its layer type
    own = {"_layer_type": None, "__reduce__": lambda self: (_empty, (kind,), self.__dict__)}
    return type(f"Packed{kind.__name__}", (_PackedWindow if window else Packed, kind), own)


def _empty(kind: type) -> Packed:
    """A packed layer of this kind without attributes, for copies and pickles."""
    made: Packed = object.__new__(_packed_kind(kind))
    return made
