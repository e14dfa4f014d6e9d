"""A symmetric matrix of which only the part on and above the diagonal is kept."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..parallel.tiles import slices

STRIP = 256  # rows of a strip: strips from the diagonal on are (1 + 256/n)/2 of the matrix


class UpperTriangle:
    """A symmetric matrix (n, n) float64 of zeros, kept in strips of STRIP rows that begin at the diagonal.

    On a GPU it is one strip.

    Args:
        order: n.
        device: where it is kept.

    Attributes:
        entries: all strips one after the other, flat; entries below the diagonal are in it within a strip's first
            block and mean nothing elsewhere.
    """

    def __init__(self, order: int, device: torch.device) -> None:
        self.order = order
        self._rows = slices(order, device, STRIP)
        sizes = [(rows.stop - rows.start) * (order - rows.start) for rows in self._rows]
        self.entries = torch.zeros(sum(sizes), dtype=torch.float64, device=device)

    def strips(self) -> Iterator[tuple[slice, Tensor]]:
        """The rows of each strip, and its entries (rows, n − first row) as a view."""
        start = 0
        for rows in self._rows:
            shape = rows.stop - rows.start, self.order - rows.start
            end = start + shape[0] * shape[1]
            yield rows, self.entries[start:end].view(shape)
            start = end

    def diagonal(self) -> Tensor:
        """The diagonal (n,)."""
        return torch.cat([entries.diagonal() for _, entries in self.strips()])

    def whole(self) -> Tensor:
        """The matrix (n, n) float32."""
        matrix = torch.empty(self.order, self.order, device=self.entries.device)
        for rows, entries in self.strips():
            matrix[rows, rows.start :] = entries
            matrix[rows.stop :, rows] = matrix[rows, rows.stop :].t()  # a strip has its diagonal block whole
        return matrix


def bytes_of_sum(order: int) -> int:
    """Bytes that an UpperTriangle takes on a CPU."""
    ends = [min(start + STRIP, order) - start for start in range(0, order, STRIP)]
    return 8 * sum(rows * (order - STRIP * number) for number, rows in enumerate(ends))
