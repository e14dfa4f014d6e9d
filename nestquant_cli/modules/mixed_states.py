"""Keys and values of which each query sees some unrounded: attention to them, whoever computes it.

With several new tokens the queries differ in what they see unrounded, so no one tensor has the keys of all of them.
`MixedStates` stands for them. torch's scaled_dot_product_attention gets, for a few queries at a time, the rounded
tokens and the unrounded ones next to each other, each behind a mask, so one softmax joins them. A model that multiplies
by itself gets the products with both and, of each, what belongs to it. Whatever else is asked of the states is refused.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.errors import NestQuantError
from .packed_attention import OUTSIDE
from .unrounded import Reach

# Queries that share a call of attention: each meets the unrounded tokens of all of them, and masks of this many rows.
ROWS = 128

# What changes no number and leaves tokens and head size apart, so it can be done to both kinds of states.
MOVES = frozenset(
    {
        Tensor.transpose,
        Tensor.expand,
        Tensor.reshape,
        Tensor.view,
        Tensor.contiguous,
        Tensor.unsqueeze,
        Tensor.permute,
        Tensor.repeat_interleave,
        Tensor.to,
        Tensor.float,
        Tensor.type_as,
        Tensor.__getitem__,
        Tensor.mT.__get__,  # type: ignore[attr-defined]
        torch.transpose,
        torch.repeat_interleave,
    }
)
PRODUCTS = frozenset({torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm})


class MixedStates(Tensor):
    """Keys or values of several queries, some of them unrounded for some queries.

    Attributes:
        rounded, unrounded: (batch, heads, tokens, head size), or moved; the second has rounded states, too, where no
            query sees unrounded ones.
        reach: which query sees what unrounded.
        keys: whether these are keys.
    """

    rounded: Tensor
    unrounded: Tensor
    reach: Reach
    keys: bool

    @staticmethod
    def __new__(
        cls: type["MixedStates"], rounded: Tensor, unrounded: Tensor, reach: Reach, keys: bool
    ) -> "MixedStates":
        """Wraps both kinds of the same states."""
        made: MixedStates = torch.Tensor._make_wrapper_subclass(
            cls, rounded.shape, dtype=rounded.dtype, device=rounded.device
        )
        made.rounded, made.unrounded, made.reach, made.keys = rounded, unrounded, reach, keys
        return made

    def moved(self, move: Callable[[Tensor], Tensor]) -> "MixedStates":
        """The same behind a move of numbers."""
        return MixedStates(move(self.rounded), move(self.unrounded), self.reach, self.keys)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in OUTSIDE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        first = args[0] if args else None
        if func in MOVES and isinstance(first, MixedStates):
            return first.moved(lambda states: func(states, *args[1:], **kwargs))
        if func in PRODUCTS and len(args) == 2 and not kwargs and isinstance(args[1], MixedStates):
            return _product(func, args[0], args[1])
        raise _unknown(func)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise _unknown(func)


def _unknown(func: Callable[..., Any]) -> NestQuantError:
    return NestQuantError(
        f"attention calls {getattr(func, '__name__', func)} on keys or values of which each query sees some unrounded",
        "nothing was computed",
        "load the model with attn_implementation='sdpa' or 'eager', or quantize without --kv-window and --kv-sinks",
    )


def _product(func: Callable[..., Tensor], x: Any, states: MixedStates) -> Tensor:
    """Scores (…, queries, tokens) of queries with keys, or sums of values under weights (…, queries, tokens)."""
    reach = states.reach
    shape = (x.shape[-2], states.shape[-1] if states.keys else states.shape[-2])
    if isinstance(x, MixedStates) or shape != (reach.new, reach.tokens):
        raise _unknown(func)
    mask = reach.mask(range(reach.new), range(reach.tokens), x.device)
    if mask.dim() > x.dim():
        raise _unknown(func)
    if states.keys:
        return torch.where(mask, func(x, states.unrounded), func(x, states.rounded))
    unseen = torch.zeros((), dtype=x.dtype, device=x.device)
    near, rest = torch.where(mask, x, unseen), torch.where(mask, unseen, x)
    return func(near, states.unrounded) + func(rest, states.rounded)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's attention to mixed states, some queries at a time."""
    reach = getattr(key, "reach", None)
    if not isinstance(key, MixedStates) or not isinstance(value, MixedStates) or query.dim() != 4 or key.dim() != 4:
        raise _unknown(F.scaled_dot_product_attention)
    assert reach is not None
    if query.shape[2] != reach.new or key.shape[2] != reach.tokens or value.shape[2] != reach.tokens:
        raise _unknown(F.scaled_dot_product_attention)
    found = []
    for start in range(0, reach.new, ROWS):
        rows = range(start, min(start + ROWS, reach.new))
        seen = _seen(attn_mask, is_causal, rows, reach.tokens, query.device)
        parts, mask = _parts(reach, rows, seen)
        keys, values = (
            torch.cat([kind[:, :, part.start : part.stop] for kind, part in zip(kinds, parts, strict=True)], dim=2)
            for kinds in ((each.rounded, each.unrounded, each.unrounded) for each in (key, value))
        )
        part_of_query = query[:, :, rows.start : rows.stop]
        of_rows = F.scaled_dot_product_attention(
            part_of_query, keys, values, mask, dropout_p, scale=scale, enable_gqa=enable_gqa
        )
        found.append(of_rows)
    return torch.cat(found, dim=2)


def _seen(mask: Tensor | None, is_causal: bool, rows: range, tokens: int, device: torch.device) -> Tensor:
    """The mask of some queries, boolean or to be added, (…, queries, tokens)."""
    if mask is not None:
        return mask.expand(*mask.shape[:-2], max(mask.shape[-2], rows.stop), tokens)[..., rows.start : rows.stop, :]
    if not is_causal:
        return torch.ones(len(rows), tokens, dtype=torch.bool, device=device)
    row = torch.arange(rows.start, rows.stop, device=device)[:, None]
    return torch.arange(tokens, device=device) <= row


def _parts(reach: Reach, rows: range, seen: Tensor) -> tuple[tuple[range, range, range], Tensor]:
    """The rounded tokens, the sinks and the recent tokens that some queries may see, and the mask of all three."""
    least = None if seen.dtype == torch.bool else torch.finfo(seen.dtype).min / 2
    columns = (seen if least is None else seen > least).flatten(0, -2).any(0).nonzero()[:, 0]
    first, stop = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 1)
    own = reach.tokens - reach.new + rows.start
    recent = min(max(first, own - reach.window + 1, reach.tokens - reach.kept), stop)
    last = own + len(rows) - 1 - reach.window + 1
    sinks = range(first, max(first, min(recent, reach.first)))
    parts = range(first, max(first, min(stop, max(last, reach.tokens - reach.kept)))), sinks, range(recent, stop)
    masks = []
    for number, part in enumerate(parts):
        exact = reach.mask(rows, part, seen.device)
        exact = ~exact if number == 0 else exact
        of_part = seen[..., part.start : part.stop]
        masks.append(of_part & exact if least is None else torch.where(exact, of_part, -torch.inf))
    return parts, torch.cat(masks, dim=-1)
