"""Which keys and values a query sees unrounded: the first ones of its sequence, and the most recent ones.

A query at position t sees the key at position p unrounded where t − p < window or p < sinks, and rounded elsewhere.
This holds however the tokens come: all at once, in chunks, one by one, with a cache or without. Positions count from
the first token that is no padding. Layers that see a sliding window of tokens have no sinks.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .packed_room import append, last

# Tokens of one update that may be taken back without loss, as assisted generation does with its drafts.
SLACK = 32
MOST_TOKENS = 1 << 20  # in a window, or of sinks


@dataclass(frozen=True)
class Unrounded:
    """Tokens whose keys and values a query sees as they are.

    Attributes:
        window: number of the most recent ones, its own included.
        sinks: number of the first ones of its sequence.
    """

    window: int = 0
    sinks: int = 0

    def __bool__(self) -> bool:
        return self.window > 0 or self.sinks > 0


ALL_ROUNDED = Unrounded()


class Padding:
    """How many tokens of padding each sequence of a cache begins with; all its layers share one.

    Attributes:
        starts: (batch,) int64; None where no sequence has any.
    """

    def __init__(self) -> None:
        self.starts: Tensor | None = None


def starts_of(mask: object) -> Tensor | None:
    """The first visible token of each sequence.

    Args:
        mask: (batch, tokens) with zeros for padding, or what is added to scores or says which are seen, (batch, heads,
            queries, tokens) of a whole text; anything else tells of no padding.

    Returns:
        (batch,) int64, `tokens` for a sequence without any; None where all begin with the first.
    """
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        return None
    if mask.dim() == 2:
        seen = mask != 0
    else:
        seen = (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2).flatten(1, 2).any(1)
    starts = torch.where(seen.any(1), seen.int().argmax(1), seen.shape[1])
    return starts if bool(starts.any()) else None


@dataclass(frozen=True)
class Reach:
    """What the queries of new tokens see unrounded, of the tokens that they look at.

    Attributes:
        tokens: number of tokens that are looked at, the new ones included.
        new: number of new ones, which are the last.
        window: as in `Unrounded`.
        kept: number of the last tokens whose unrounded states are there.
        sinks: as in `Unrounded`.
        first: number of the first tokens whose unrounded states are there.
        starts: tokens of padding of each sequence, (batch,); None where there is none.
    """

    tokens: int
    new: int
    window: int
    kept: int
    sinks: int
    first: int
    starts: Tensor | None

    @property
    def whole(self) -> bool:
        """Whether every query sees everything unrounded."""
        return self.kept == self.tokens <= self.window

    def mask(self, rows: range, columns: range, device: torch.device) -> Tensor:
        """Whether a query sees a token unrounded: (queries, tokens), or (batch, 1, queries, tokens) with padding."""
        own = torch.arange(rows.start, rows.stop, device=device)[:, None] + (self.tokens - self.new)
        column = torch.arange(columns.start, columns.stop, device=device)
        seen = (own - column < self.window) & (column >= self.tokens - self.kept)
        if not self.sinks:
            return seen
        if self.starts is None:
            return seen | (column < min(self.sinks, self.first))
        begin = self.starts.to(device)[:, None]
        sinks = (column >= begin) & (column < begin + self.sinks) & (column < self.first)
        return seen | sinks[:, None, None]


class Kept(NamedTuple):
    """Unrounded states of a layer's keys, or of its values; nothing changes one in place.

    Attributes:
        recent: (batch, heads, tokens, head size), of the last tokens.
        first: the same of the first ones.
    """

    recent: Tensor
    first: Tensor

    def grown(self, states: Tensor, past: int, unrounded: Unrounded, starts: Tensor | None) -> tuple["Kept", Tensor]:
        """What to keep with new states (batch, heads, new tokens, head size) after `past` tokens, and the last tokens.

        Returns:
            what is kept now, and the states of the new tokens and of those before that they see by the window.
        """
        first, new = self.first, states.shape[2]
        most = unrounded.sinks and unrounded.sinks + (0 if starts is None else int(starts.max()))
        if first.shape[2] == past < most:
            first = torch.cat([first, states[:, :, : most - past].detach()], dim=2)
        if not unrounded.window:
            return Kept(self.recent, first), states[:, :, :0]
        before = self.recent[:, :, max(0, self.recent.shape[2] - unrounded.window + 1) :]
        if new == 1:  # in place, as a rule
            grown = append(last(self.recent, unrounded.window - 1), states.detach())
            tail = torch.cat([before, states], dim=2) if states.requires_grad else grown
        else:
            grown = tail = torch.cat([before, states], dim=2)
        size = unrounded.window - 1 + min(new - 1, SLACK)
        kept = last(grown, size) if new == 1 else grown[:, :, max(0, grown.shape[2] - size) :].detach().clone()
        return Kept(kept, first), tail

    @staticmethod
    def none(states: Tensor) -> "Kept":
        """Nothing yet, of states (batch, heads, tokens, head size)."""
        nothing = states.new_empty(*states.shape[:2], 0, states.shape[3])  # a slice would hold all states
        return Kept(nothing, nothing)

    def cropped(self, removed: int, left: int) -> "Kept":
        """Without the last `removed` tokens, where `left` are left of all."""
        return Kept(self.recent[:, :, : max(0, self.recent.shape[2] - removed)], self.first[:, :, :left])


class Beside(NamedTuple):
    """Unrounded states next to rounded ones.

    Attributes:
        recent: (batch, heads, kept tokens, head size), of the last tokens.
        first: the same of the first ones.
        reach: which query sees what of them.
    """

    recent: Tensor
    first: Tensor
    reach: Reach

    @property
    def sinks(self) -> int:
        """Number of the first tokens that are looked at here, before those of `recent`."""
        most = self.reach.tokens - self.recent.shape[2]
        return min(most, self.reach.first if self.reach.starts is not None else min(self.reach.first, self.reach.sinks))

    def laid_over(self, rounded: Tensor) -> Tensor:
        """Rounded states (batch, heads, tokens, head size) with the unrounded ones in their places."""
        first, stop = self.sinks, self.reach.tokens - self.recent.shape[2]
        return torch.cat([self.first[:, :, :first], rounded[:, :, first:stop], self.recent], dim=2)

    def of_one(self, rounded: Tensor) -> Tensor:
        """What one new token sees, of rounded states (batch, heads, tokens, head size)."""
        laid = self.laid_over(rounded)
        if self.reach.starts is None:
            return laid
        return torch.where(self.reach.mask(range(1), range(self.reach.tokens), laid.device).mT, laid, rounded)
