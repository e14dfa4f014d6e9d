"""Decoding of grouped lattices in plain torch: digits to levels, and one product with G for each group."""

import torch
from torch import Tensor

from ...e8.digits import unpack_digits
from ..contract.searches import LatticeGroup


def decode(words: Tensor, entries: int, groups: list[LatticeGroup], levels: Tensor, lattices: Tensor) -> Tensor:
    """Digits of rows to G·l(z), (rows, entries) float32: `contract.searches.decode_lattices`, group by group."""
    parts = []
    for number, (_, width, bits, first) in enumerate(groups):
        digits = unpack_digits(words[:, first : first + width * bits // 8].contiguous(), width, bits)
        G = lattices[min(number, len(lattices) - 1)]
        table = levels[number, : 1 << bits]
        parts.append((table[digits.int()].view(len(words), -1, len(G)) @ G.t()).view(len(words), -1))
    return torch.cat(parts, dim=1)
