"""Attention of one token to packed keys and values and to unrounded ones beside them, joined by their log-sum-exp."""

from collections.abc import Callable

import torch
from torch import Tensor

from .unrounded import Beside


def attend_beside(
    attend: Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor],
    query: Tensor,
    packed: tuple[Tensor, Tensor],
    beside: tuple[Beside, Beside],
    mask: Tensor | None,
    scale: float,
) -> Tensor:
    """Attention of the queries of one token.

    Args:
        attend: function (keys, values, mask, lse) of packed keys and values (batch, key heads, tokens, bytes), which
            returns the attention of the queries to them and fills their log-sum-exp.
        query: (batch, key heads, queries, n) floating point.
        packed: keys and values of all tokens that are looked at, (batch, key heads, tokens, bytes).
        beside: the unrounded ones of keys and of values.
        mask: floating point, broadcastable to (batch, key heads, queries, tokens), added to the scores; or None.
        scale: factor of the scores.

    Returns:
        (batch, key heads, queries, m) float32; zeros where the mask leaves nothing.
    """
    reach, recent = beside[0].reach, beside[0].recent.shape[2]
    first, stop = beside[0].sinks, reach.tokens - recent
    keys, values = (torch.cat([each.first[:, :, :first], each.recent], dim=2).float() for each in beside)
    scores = (query.float() * scale) @ keys.mT
    if mask is not None:
        scores = scores + torch.cat([mask[..., :first], mask[..., stop:]], dim=-1)
    begin = first
    if reach.starts is not None:  # sinks lie between rounded tokens, in other places of each sequence
        unrounded = reach.mask(range(1), range(stop), query.device)
        scores[..., :first].masked_fill_(~unrounded[..., :first], -torch.inf)
        hidden = torch.zeros(unrounded.shape).masked_fill_(unrounded, -torch.inf)
        begin, mask = 0, hidden if mask is None else mask[..., :stop] + hidden
    near = torch.logsumexp(scores, dim=-1)
    nowhere = (near == -torch.inf)[..., None]
    out = torch.softmax(scores, dim=-1).masked_fill(nowhere, 0) @ values
    if stop <= begin:
        return out
    lse = torch.empty(query.shape[:3])
    keys, values = (part[:, :, begin:stop] for part in packed)
    far = attend(keys, values, None if mask is None else mask[..., begin:stop], lse)
    total = torch.logaddexp(near, lse)
    return _share(lse, total) * far + _share(near, total) * out


def _share(part: Tensor, total: Tensor) -> Tensor:
    return torch.exp(part - total).masked_fill(total == -torch.inf, 0)[..., None]
