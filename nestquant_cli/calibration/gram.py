"""Sums of x xᵀ over rotated tokens, and of x yᵀ over pairs of such, from exact products of integers.

A rotated token has no large entries, so int8 multiples of a step of its own describe it well: the rounding error is
white and below a thousandth of its power, a tenth of what damping adds. Steps are powers of four, tokens of one step
are multiplied together on integer hardware, and the sums of such products are exact in float64. So they do not depend
on the order in which tokens come, nor on how many threads or processes share them.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.grid import EMPTY, INFINITE, to_grid
from ..kernels.int8 import integer_product
from ..tiles import slices

_MOST_TOKENS = 1 << 16  # in one product: 2¹⁶·127² is below 2³¹
_STRIP = 128  # columns of the sums that are taken in one product: half of a symmetric matrix is enough


class GramSum:
    """Σ (R x)(R x)ᵀ over tokens x.

    Args:
        features: entries of a token; it is padded with zeros to a multiple of 8.
        seed: of the rotation's signs.
        device: of the sum.

    Attributes:
        upper: (n, n) float64, right on and above the diagonal; multiples of powers of four.
        tokens: how many were added.
        finite: whether all of them were.
    """

    def __init__(self, features: int, seed: int, device: torch.device) -> None:
        self.order = features + -features % 8
        self.upper = torch.zeros(self.order, self.order, dtype=torch.float64, device=device)
        self.tokens = 0
        self.finite = True
        self._seed = seed

    def add(self, x: Tensor) -> None:
        """x (tokens, features), any floating dtype."""
        self.tokens += len(x)
        v, exponent = to_grid(x, self.order, self._seed)
        self.finite = self.finite and not bool((exponent == INFINITE).any())
        if not self.finite:
            return
        _round_small(v, exponent)
        for power, rows in _by_power(exponent, exponent != EMPTY):
            for some in (v if rows.all() else v[rows]).split(_MOST_TOKENS):
                self._add_grid(some, 4.0**power)

    def _add_grid(self, v: Tensor, factor: float) -> None:
        across = _across(v)
        for part in slices(self.order, v.device, _STRIP):
            self.upper[part, part.start :].add_(integer_product(across[part], across[part.start :]), alpha=factor)

    def mean(self) -> Tensor:
        """(n, n) float32, E[(R x)(R x)ᵀ] per token; the sum is used up by it."""
        upper = self.upper
        del self.upper  # as large as anything that a run holds
        upper.div_(self.tokens)
        whole = upper.float()
        del upper
        for part in slices(self.order, whole.device, _STRIP):
            whole[part.stop :, part] = whole[part, part.stop :].t()  # a strip has its diagonal block whole
        return whole


class CrossSum:
    """Σ (R x)(R y)ᵀ over pairs of tokens x, y; arguments as of `GramSum`.

    Attributes:
        total: (n, n) float64; multiples of powers of two.
        pairs: how many were added.
        finite: whether all of them were.
    """

    def __init__(self, features: int, seed: int, device: torch.device) -> None:
        self.order = features + -features % 8
        self.total = torch.zeros(self.order, self.order, dtype=torch.float64, device=device)
        self.pairs = 0
        self.finite = True
        self._seed = seed

    def add(self, x: Tensor, y: Tensor) -> None:
        """x and y (tokens, features), any floating dtype."""
        self.pairs += len(x)
        (v, left), (w, right) = (to_grid(tokens, self.order, self._seed) for tokens in (x, y))
        self.finite = self.finite and not bool(((left == INFINITE) | (right == INFINITE)).any())
        if not self.finite:
            return
        _round_small(v, left)
        _round_small(w, right)
        for power, rows in _by_power(left.int() + right.int(), (left != EMPTY) & (right != EMPTY)):
            for some, others in zip(v[rows].split(_MOST_TOKENS), w[rows].split(_MOST_TOKENS), strict=True):
                a, b = _across(some), _across(others)
                for part in slices(self.order, v.device, _STRIP):
                    self.total[part].add_(integer_product(a[part], b), alpha=2.0**power)

    def mean(self) -> Tensor:
        """(n, n) float32, E[(R x)(R y)ᵀ] per pair; the sum is used up by it."""
        total = self.total
        del self.total
        return total.div_(self.pairs).float()


def _by_power(power: Tensor, live: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The powers (tokens,) of the live tokens, and for each of them which have it."""
    for each in power[live].unique().tolist():
        yield each, live & (power == each)


def _across(v: Tensor) -> Tensor:
    """v (tokens, n) as (n, tokens), as its device's int8 products take it."""
    return F.pad(v, (0, 0, 0, -len(v) % 8)).t().contiguous() if v.is_cuda else v.t()


def _round_small(v: Tensor, exponent: Tensor) -> None:
    """Rounds tokens with a step below the most common one to that step, in place: it saves a product for few tokens."""
    live = exponent[exponent != EMPTY]
    if not len(live):
        return
    common = int(live.mode().values)
    for power in live.unique().tolist():
        if power < common:
            rows = torch.nonzero(exponent == power).flatten()
            shift = min(common - power, 14)
            v[rows] = ((v[rows].to(torch.int16) + (1 << (shift - 1))) >> shift).to(torch.int8)
            exponent[rows] = common
