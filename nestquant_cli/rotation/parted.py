"""A rotation in parts: each of N equal slices of a vector is rotated by itself, so that N processes hold one each.

Every slice has the same rotation, that of its own size: what a process needs is the seed and the size of a slice, not
which slice it has, nor how many there are.
"""

import torch
from torch import Tensor

from .transform import Identity, Rotation, rotation


class Parted:
    """blockdiag(R, …, R) of N equal parts. It has the methods of `Rotation`.

    Args:
        part: R, the rotation of one slice.
        parts: N, number of slices.
    """

    def __init__(self, part: Rotation | Identity, parts: int) -> None:
        self.order, self.parts, self._part = part.order * parts, parts, part

    def apply(self, x: Tensor) -> Tensor:
        """R of every slice of every vector along the last axis: (..., n) float32."""
        return self._part.apply(x.reshape(*x.shape[:-1], self.parts, -1)).flatten(-2)

    def inverse(self, y: Tensor) -> Tensor:
        """Rᵀ of every slice of every vector along the last axis: (..., n) float32; the inverse of `apply`."""
        return self._part.inverse(y.reshape(*y.shape[:-1], self.parts, -1)).flatten(-2)

    def matrix(self) -> Tensor:
        """The rotation as a dense matrix (n, n) float32."""
        return torch.block_diag(*[self._part.matrix()] * self.parts)


def parted_rotation(order: int, seed: int | None, parts: int = 1) -> Rotation | Identity | Parted:
    """The rotation of vectors of an order in equal parts, each by itself.

    Args:
        order: n, a multiple of `parts`.
        seed: seed of the rotation signs; None for no rotation.
        parts: number of parts.
    """
    part = rotation(order // parts, seed)
    return part if parts == 1 else Parted(part, parts)
