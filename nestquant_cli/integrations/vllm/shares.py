"""What one process of a tensor-parallel model has of a matrix whose input is split among the processes.

Either some parts of the input and the same columns of the matrix, or some rows of it. The products of all processes are
added up, rows of other processes being zeros.
"""

from typing import NamedTuple

from torch import Tensor

from ...modules.layout import Layout
from ...rotation.seeds import seeds_of_parts
from .columns import columns_of
from .layer import LayerInput
from .names import Rows
from .pieces import Piece


class Share(NamedTuple):
    """The place of a process.

    Attributes:
        rank: its number.
        processes: how many there are.
    """

    rank: int
    processes: int

    def rows(self, count: int) -> tuple[int, int]:
        """The first of so many rows that the process has, and the one behind the last."""
        return self.rank * count // self.processes, (self.rank + 1) * count // self.processes


def has_parts(layout: Layout, name: str, processes: int) -> bool:
    """Whether each process can have parts of the input of the matrix `name` and its columns to them."""
    linear = layout.linears[name]
    return columns_of(linear, layout.parts.get(linear.input, 1), processes) is not None


def some_columns(
    layout: Layout, piece: Piece, tensors: dict[str, Tensor], share: Share
) -> tuple[Piece, dict[str, Tensor]]:
    """The columns of a matrix that a process has."""
    columns = columns_of(piece.linear, layout.parts[piece.linear.input], share.processes)
    assert columns is not None
    return Piece(piece.place, columns.linear), columns.of(tensors, share.rank)


def input_of_parts(layout: Layout, name: str, share: Share) -> LayerInput:
    """The quantizer of the parts that a process has of the input `name`."""
    code, parts = layout.inputs[name], layout.parts[name] // share.processes
    own = None if code is None else code.part(share.rank * parts, parts)
    features = next(linear.in_features for linear in layout.linears.values() if linear.input == name)
    seed = seeds_of_parts(layout.seed_of(name), share.processes)[share.rank]
    return LayerInput(features // share.processes, seed, own, None, parts)


def some_rows(piece: Piece, tensors: dict[str, Tensor], share: Share) -> tuple[Piece, dict[str, Tensor]]:
    """The rows of a matrix that a process has."""
    start, stop = share.rows(piece.place.rows)
    own = {name: tensor if piece.whole(name) else tensor[start:stop].clone() for name, tensor in tensors.items()}
    return Piece(Rows(piece.place.name, piece.place.outputs, stop - start), piece.linear), own
