"""Which tokens of a step belong to which request, where the pages of that are, and where new tokens go."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Run(NamedTuple):
    """Several tokens of one request that follow each other: a prompt, or a chunk of one.

    Attributes:
        start, stop: its rows in the tokens of the step.
        length: tokens of the request, these included.
        pages: (pages,) int64, the pages of the request in order.
    """

    start: int
    stop: int
    length: int
    pages: Tensor


class Places(NamedTuple):
    """Where the new tokens of a step go.

    Attributes:
        kept: (tokens,) bool, the tokens that go anywhere; None for all.
        page, place: (tokens kept,) int64, the page of each, and which token of it.
    """

    kept: Tensor | None
    page: Tensor
    place: Tensor


class Slots:
    """Where the new tokens of a step go, as the engine says it; worked out once for all layers.

    Args:
        numbers: (tokens,) integers, page · tokens of a page + token in the page; negative for a token to skip. They do
            not change as long as this lives.
    """

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers
        self._places: dict[int, Places] = {}

    def places(self, size: int) -> Places:
        """Where they go in pages of `size` tokens."""
        if size not in self._places:
            kept, numbers = self.numbers >= 0, self.numbers
            everything = bool(kept.all())
            numbers = (numbers if everything else numbers[kept]).long()
            self._places[size] = Places(None if everything else kept, numbers // size, numbers % size)
        return self._places[size]


@dataclass(frozen=True)
class Batch:
    """The requests of one step.

    Attributes:
        tokens: how many there are.
        rows: (requests,) int64, the rows of tokens that are the only ones of their request; None where all are.
        table: (requests, pages of the longest) int64, the pages of these requests in order.
        lengths: (requests,) int32, the tokens of these requests, the new one included.
        runs: the other requests.
        slots: where the tokens go; None where the engine did not say.
    """

    tokens: int
    rows: Tensor | None
    table: Tensor
    lengths: Tensor
    runs: tuple[Run, ...]
    slots: Slots | None = None

    def all_runs(self) -> tuple[Run, ...]:
        """Every request as a run, for a cache whose codes have no kernel for one token."""
        rows = range(len(self.lengths)) if self.rows is None else self.rows.tolist()
        alone = zip(rows, self.lengths.tolist(), self.table, strict=True)
        return (*self.runs, *(Run(row, row + 1, length, pages) for row, length, pages in alone))


def batch_of(starts: Tensor, lengths: Tensor, table: Tensor, slots: Slots | None = None) -> Batch:
    """The requests of a step, sorted out.

    Args:
        starts: (requests + 1,) integers, the first row of each request and the end of the last.
        lengths: (requests,) integers, the tokens of each request, those of this step included.
        table: (requests, pages) integers, the pages of each request in order.
        slots: where the tokens go.
    """
    counts, lengths, table, tokens = starts.diff(), lengths.int(), table.long(), int(starts[-1])
    alone = counts == 1
    if bool(alone.all()):
        return Batch(tokens, None, table, lengths, (), slots)
    runs = [
        Run(int(starts[i]), int(starts[i + 1]), int(lengths[i]), table[i])
        for i in torch.nonzero(counts > 1)[:, 0].tolist()
    ]
    return Batch(tokens, starts[:-1][alone].long(), table[alone], lengths[alone], tuple(runs), slots)
