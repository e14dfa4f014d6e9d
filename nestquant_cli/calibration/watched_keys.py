"""Keys that show which queries they meet: attention is watched from what a cache returns, whoever computes it.

A `WatchedKeys` is the keys themselves. What changes no number keeps it one, together with marks that say which channel
of which head an entry is. torch's scaled_dot_product_attention and products of matrices with it tell of the queries;
whatever else is done with it is done with ordinary keys. Queries of attention in another form are not seen.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..modules.mixed_states import MOVES, PRODUCTS

See = Callable[[Tensor], object]
_OF_TYPE = frozenset({Tensor.contiguous, Tensor.to, Tensor.float, Tensor.type_as})  # which leave shapes as they are


class WatchedKeys(Tensor):
    """Keys (batch, heads, tokens, head size), or moved.

    Attributes:
        marks: head · head size + channel of each entry, int32, moved as the keys are.
        see: called with the energy of queries, (heads · head size,) float64 by these numbers.
        count: heads · head size.
    """

    marks: Tensor
    see: See
    count: int

    @staticmethod
    def of(keys: Tensor, see: See) -> "WatchedKeys":
        """The keys (batch, heads, tokens, head size), watched."""
        heads, size = keys.shape[1], keys.shape[3]
        marks = torch.arange(heads * size, dtype=torch.int32, device=keys.device).view(1, heads, 1, size)
        return _watched(keys, marks.expand(keys.shape), see, heads * size)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        with torch._C.DisableTorchFunctionSubclass():
            if func in MOVES and isinstance(first, WatchedKeys):
                moved = func(_plain(first), *args[1:], **kwargs)
                marks = first.marks if func in _OF_TYPE else func(first.marks, *args[1:], **kwargs)
                return _watched(moved, marks, first.see, first.count)
            if func is F.scaled_dot_product_attention:
                _see_attention(*args, **kwargs)
            elif func in PRODUCTS and len(args) == 2 and isinstance(args[1], WatchedKeys):
                _see(args[1], args[0], args[1].marks[..., 0])
            return func(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})


def _watched(keys: Tensor, marks: Tensor, see: See, count: int) -> WatchedKeys:
    made: WatchedKeys = keys.as_subclass(WatchedKeys)
    made.marks, made.see, made.count = marks, see, count
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value.as_subclass(Tensor) if isinstance(value, WatchedKeys) else value


def _see_attention(query: Tensor, key: Tensor, *_: Any, **__: Any) -> None:
    """Sees the queries (batch, heads, tokens, head size) of a call of torch's attention."""
    if not isinstance(key, WatchedKeys) or isinstance(query, WatchedKeys):
        return
    marks = key.marks[..., 0, :]
    if query.dim() == 4 and query.shape[1] != marks.shape[1]:  # neighbors share a head of the keys
        marks = marks.repeat_interleave(query.shape[1] // marks.shape[1], dim=1)
    _see(key, query, marks)


def _see(keys: WatchedKeys, query: Tensor, marks: Tensor) -> None:
    """Sees queries (..., tokens, head size), given the marks (..., head size) of the keys that they meet."""
    energy = query.detach().float().square().sum(-2, dtype=torch.float64).cpu()
    sums = torch.zeros(keys.count, dtype=torch.float64)
    sums.index_add_(0, marks.expand(energy.shape).flatten().long().cpu(), energy.flatten())
    keys.see(sums)
