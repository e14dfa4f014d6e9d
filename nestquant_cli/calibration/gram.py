"""Sums of x xᵀ over rotated tokens, and of x yᵀ over pairs of them, from exact integer products.

A rotated token has no large entries, so int8 multiples of one step per token describe it well: the rounding error is
white and below a thousandth of the token's power, a tenth of what damping adds. Steps are powers of four. Tokens with
the same step are multiplied together on integer hardware, and sums of such products are exact in float64. So they do
not depend on the order of the tokens, nor on the number of threads or processes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.device import on_host
from ..kernels import for_device
from ..kernels.contract.constants import EMPTY, INFINITE
from ..parallel.tiles import slices
from .token_queue import TokenQueue, counts_of
from .upper_triangle import STRIP, UpperTriangle

# Tokens that are gathered for one product: adding its result to the float64 sum costs n² additions however few tokens
# there are, and 8,192 multiply-adds an entry make that small.
TOGETHER = 8192


@dataclass(frozen=True)
class Grid:
    """Rotated tokens, each rounded to integer multiples of its own step.

    Attributes:
        v: (tokens, n) int8.
        exponent: (tokens,) int8; the step of a token is 2^exponent.
        finite: whether all tokens are finite; if not, v and exponent mean nothing.
    """

    v: Tensor
    exponent: Tensor
    finite: bool


def on_grid(x: Tensor, order: int, seed: int) -> Grid:
    """Rotates tokens x (tokens, features ≤ order) of any floating dtype and rounds each to its grid.

    A token whose step is below the most common one takes the common step, which is coarser.
    """
    v, exponent = for_device(x.device).to_grid(x, order, seed)
    return Grid(v, exponent, _round_small(v, exponent))


class GramSum:
    """Σ (R x)(R x)ᵀ over tokens x.

    Args:
        features: entries of a token; it is padded with zeros to a multiple of 8.
        seed: seed of the rotation signs.
        device: device of the sum.
        together: number of tokens that are gathered for one product; the sum does not depend on it.

    Attributes:
        tokens: number of tokens added.
        finite: whether all of them are finite.
    """

    def __init__(self, features: int, seed: int, device: torch.device, together: int = TOGETHER) -> None:
        self.order = features + -features % 8
        self.tokens = 0
        self.finite = True
        self._upper = UpperTriangle(self.order, device)
        self._queue = TokenQueue(together)
        self._seed = seed

    @property
    def upper(self) -> UpperTriangle:
        """The sum, float64; entries are multiples of powers of four."""
        self._settle()
        return self._upper

    def grid(self, x: Tensor) -> Grid:
        """Puts x (tokens, features) on its grid for `add`; safe to call from several threads."""
        return on_grid(x, self.order, self._seed)

    def add(self, x: Grid) -> None:
        """Adds tokens, which are copied."""
        self.tokens += len(x.v)
        self.finite = self.finite and x.finite
        if self.finite:
            for _ in self._queue.fill(x.exponent, x.v):
                self._settle()

    def _settle(self) -> None:
        integer_product = for_device(self._upper.entries.device).integer_product
        for power, (rows,) in self._queue.take():
            across = _across(rows)
            for strip, entries in self._upper.strips():
                entries.add_(integer_product(across[strip], across[strip.start :]), alpha=4.0**power)

    def include(self, other: "GramSum") -> None:
        """Adds the tokens of another sum with the same rotation."""
        self.upper.entries.add_(other.upper.entries)
        self.tokens += other.tokens
        self.finite = self.finite and other.finite

    def mean(self, prior: "GramSum | None" = None, weight: float = 0) -> Tensor:
        """E[(R x)(R x)ᵀ] per token, (n, n) float32. The sum is freed, so it can be called once.

        Args:
            prior: sum whose mean is blended in; it is not freed.
            weight: number of tokens that the mean of `prior` counts as.
        """
        upper = self.upper
        del self._upper
        if prior is not None:
            upper.entries.add_(prior.upper.entries, alpha=weight / prior.tokens)
        upper.entries.div_(self.tokens + weight)
        return upper.whole()


class CrossSum:
    """Σ (R x)(R y)ᵀ over pairs of tokens x, y, each rotated in its own order.

    Args:
        order: order of the rotation of y.
        device: device of the sum.
        rows: order of the rotation of x; None where it is that of y.

    Attributes:
        pairs: number of pairs added.
        finite: whether all of their tokens are finite.
    """

    def __init__(self, order: int, device: torch.device, rows: int | None = None) -> None:
        self.order, self.rows = order, order if rows is None else rows
        self.pairs = 0
        self.finite = True
        self._total = torch.zeros(self.rows, order, dtype=torch.float64, device=device)
        self._queue = TokenQueue(TOGETHER)

    @property
    def total(self) -> Tensor:
        """The sum (rows, order) float64; entries are multiples of powers of two."""
        self._settle()
        return self._total

    def add(self, x: Grid, y: Grid) -> None:
        """Adds pairs, as many tokens of x as of y; both are copied."""
        self.pairs += len(x.v)
        self.finite = self.finite and x.finite and y.finite
        if self.finite:
            for _ in self._queue.fill(x.exponent.int() + y.exponent.int(), x.v, y.v):
                self._settle()

    def _settle(self) -> None:
        integer_product = for_device(self._total.device).integer_product
        for power, (left, right) in self._queue.take():
            a, b = _across(left), _across(right)
            for strip in slices(self.rows, left.device, STRIP):
                self._total[strip].add_(integer_product(a[strip], b), alpha=2.0**power)

    def mean(self) -> Tensor:
        """E[(R x)(R y)ᵀ] per pair, (rows, order) float32. The sum is freed, so it can be called once."""
        total = self.total
        del self._total
        return total.div_(self.pairs).float()


def _across(v: Tensor) -> Tensor:
    """v (tokens, n) as (n, tokens), as its device's int8 products take it: on a GPU a multiple of 8 tokens."""
    return v.t() if on_host(v.device) else F.pad(v, (0, 0, 0, -len(v) % 8)).t().contiguous()


def _round_small(v: Tensor, exponent: Tensor) -> bool:
    """Rounds tokens with a step below the most common one to that step, in place: it saves a product for few tokens.

    Tokens of zeros get that step as well. False, and nothing is done, where a token is not finite.
    """
    counts = counts_of(exponent)
    if INFINITE in counts:
        return False
    common = max(counts.keys() - {EMPTY}, key=counts.__getitem__, default=0)
    for power in counts:
        if power >= common and power != EMPTY:
            continue
        rows = torch.nonzero(exponent == power).flatten()
        exponent[rows] = common
        if power == EMPTY:
            v[rows] = 0
            continue
        shift = min(common - power, 14)
        v[rows] = ((v[rows].to(torch.int16) + (1 << (shift - 1))) >> shift).to(torch.int8)
    return True
