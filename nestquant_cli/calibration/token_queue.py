"""Int8 tokens that wait until there are enough of them for one product."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..kernels.contract.constants import EMPTY

MOST = 1 << 16  # tokens in one product, whose sums are int32: 2¹⁶·127² is below 2³¹


class TokenQueue:
    """Int8 rows with the exponents of their steps, in memory of their own: what they come from can be freed.

    Args:
        most: rows that it holds, at most `MOST`.
    """

    def __init__(self, most: int) -> None:
        self.most, self.tokens = min(most, MOST), 0
        self._power = torch.empty(0)
        self._factors: list[Tensor] = []

    def fill(self, power: Tensor, *factors: Tensor) -> Iterator[None]:
        """Copies rows into the queue. Yields whenever it is full, and whoever asks for the rest has to empty it.

        Args:
            power: (tokens,) the exponent of each row's step.
            factors: (tokens, n) int8, one tensor for x xᵀ, two for x yᵀ.
        """
        if not self._factors:
            self._power = torch.empty(self.most, dtype=power.dtype, device=power.device)
            self._factors = [factor.new_empty(self.most, factor.shape[1]) for factor in factors]
        start = 0
        while start < len(power):
            count = min(len(power) - start, self.most - self.tokens)
            there = slice(self.tokens, self.tokens + count)
            self._power[there] = power[start : start + count]
            for own, factor in zip(self._factors, factors, strict=True):
                own[there] = factor[start : start + count]
            start, self.tokens = start + count, there.stop
            if self.tokens == self.most:
                yield

    def take(self) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Empties the queue: yields each exponent with its rows."""
        count, self.tokens = self.tokens, 0
        if not count:
            return
        power, factors = self._power[:count], [factor[:count] for factor in self._factors]
        counts = counts_of(power)
        for exponent in counts:
            if len(counts) == 1:
                yield exponent, tuple(factors)
            else:
                rows = torch.nonzero(power == exponent).flatten()
                yield exponent, tuple(factor[rows] for factor in factors)


def counts_of(power: Tensor) -> dict[int, int]:
    """Number of tokens with each exponent of `power` (tokens,), by exponent in ascending order."""
    lowest = 2 * EMPTY  # the smallest sum of two exponents
    counts = torch.bincount(power.long() - lowest, minlength=1).tolist()
    return {index + lowest: count for index, count in enumerate(counts) if count}
