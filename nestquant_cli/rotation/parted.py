"""A rotation in parts: each of N equal slices of a vector is rotated by itself, so that N processes hold one each.

Every slice has the same rotation, that of its own size: what a process needs is the seed and the size of a slice, not
which slice it has, nor how many there are. Factors beside the signs are those of the slice's channels.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .seeds import Seed, seeds_of_parts
from .transform import Identity, Rotation, rotation


class Parted:
    """blockdiag(R₁, …, R_N) of N equal parts. It has the methods of `Rotation`.

    Args:
        parts: the rotation of each slice; without factors, all are one.
    """

    def __init__(self, parts: Sequence[Rotation | Identity]) -> None:
        self.order, self.parts, self._parts = parts[0].order * len(parts), len(parts), parts
        self._alike = all(part is parts[0] for part in parts)

    def apply(self, x: Tensor) -> Tensor:
        """R of every slice of every vector along the last axis: (..., n) float32."""
        return self._of_slices(x, lambda part: part.apply)

    def inverse(self, y: Tensor) -> Tensor:
        """R⁻¹ of every slice of every vector along the last axis: (..., n) float32; the inverse of `apply`."""
        return self._of_slices(y, lambda part: part.inverse)

    def matrix(self) -> Tensor:
        """The rotation as a dense matrix (n, n) float32."""
        return torch.block_diag(*[part.matrix() for part in self._parts])

    def _of_slices(self, x: Tensor, turn: Callable[[Rotation | Identity], Callable[[Tensor], Tensor]]) -> Tensor:
        if self._alike:
            return turn(self._parts[0])(x.reshape(*x.shape[:-1], self.parts, -1)).flatten(-2)
        slices = x.chunk(self.parts, dim=-1)
        return torch.cat([turn(part)(of_part) for part, of_part in zip(self._parts, slices, strict=True)], dim=-1)


def parted_rotation(order: int, seed: Seed | None, parts: int = 1) -> Rotation | Identity | Parted:
    """The rotation of vectors of an order in equal parts, each by itself.

    Args:
        order: n, a multiple of `parts`.
        seed: seed of the rotation signs, with factors of all channels if there are any; None for no rotation.
        parts: number of parts.
    """
    if parts == 1:
        return rotation(order, seed)
    return Parted([rotation(order // parts, of_part) for of_part in seeds_of_parts(seed, parts)])
