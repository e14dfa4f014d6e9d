"""Some columns of a stored matrix: what one process of a tensor-parallel model multiplies with its part of an input."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from ...codecs.integer.code import IntegerCode
from ...e8.code import BLOCK, NestedCode
from ...modules.layout import LinearLayout


@dataclass(frozen=True)
class Columns:
    """The columns of a matrix, divided among processes.

    Attributes:
        linear: what a layout would say of the columns of one process.
    """

    linear: LinearLayout

    def of(self, tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
        """The stored tensors of the columns of a process.

        Args:
            tensors: those of the matrix by name, or "weight" of one that is not coded.
            rank: number of the process.
        """
        size, code = self.linear.in_features, self.linear.code
        if code is None:
            return {"weight": tensors["weight"][:, rank * size : (rank + 1) * size].clone()}
        assert isinstance(code, NestedCode | IntegerCode)
        group = code.group if isinstance(code, IntegerCode) else None
        groups = size // group if group else 1
        bits = {"words": size // BLOCK * code.word_bits, "zeros": groups * code.word_bits // BLOCK}
        found = {}
        for name, tensor in tensors.items():
            if name in bits and (name == "words" or group):
                found[name] = bits_of(tensor, rank * bits[name], bits[name])
            elif tensor.dim() == 2 and group:
                found[name] = tensor[:, rank * groups : (rank + 1) * groups].clone()
            else:  # of a whole row
                found[name] = tensor
        return found


def columns_of(linear: LinearLayout, parts: int, processes: int) -> Columns | None:
    """The columns of a matrix for each of some processes; None where their words cannot be cut, or the input not.

    Words of lattices have no fixed place in a row.

    Args:
        linear: what the layout says of the matrix.
        parts: number of parts of its input.
        processes: how many processes there are.
    """
    code, size = linear.code, linear.in_features // processes
    if parts % processes or not (code is None or isinstance(code, NestedCode | IntegerCode)):
        return None
    if isinstance(code, IntegerCode) and code.group and size % code.group:
        return None
    return Columns(replace(linear, in_features=size))


def bits_of(rows: Tensor, start: int, count: int) -> Tensor:
    """Bits start … start + count of strings of bits, each in a row of bytes, the lowest bit of a byte first.

    Args:
        rows: (rows, bytes) uint8.
        start: number of the first bit.
        count: how many bits.

    Returns:
        (rows, ⌈count/8⌉) uint8, the rest of the last byte 0.
    """
    first, shift = divmod(start, 8)
    width = -(-count // 8)
    padded = F.pad(rows, (0, 2))
    found = padded[:, first : first + width].clone()
    if shift:
        found = (found >> shift) | (padded[:, first + 1 : first + width + 1] << (8 - shift))
    if count % 8:
        found[:, -1] &= (1 << count % 8) - 1
    return found
