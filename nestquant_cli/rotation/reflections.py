"""A learned rotation: a product of Householder reflections, orthogonal whatever the vectors are.

    P = (I − 2 v₁v₁ᵀ/‖v₁‖²) · … · (I − 2 v_r v_rᵀ/‖v_r‖²) = I − V T Vᵀ,   T⁻¹ = triu(VᵀV, 1) + diag(VᵀV)/2

with the v as columns of V. It follows the Hadamard rotation R, so that x becomes P R x. The vectors are stored in 16
bits: rounding them changes which rotation it is, not that it is one. A reflection costs n·16 bits: 16 of them are 0.24
bits a weight on the demo model.
"""

import torch
from torch import Tensor, nn

from .parted import Parted, parted_rotation
from .seeds import Seed
from .transform import Identity, Rotation


class Reflections(nn.Module):
    """The product P of r reflections of order n, with its vectors as a buffer that is stored in the checkpoint.

    Args:
        count: r, how many reflections.
        order: n.
        device: device of the buffer.
    """

    reflectors: Tensor  # (r, n) int16, the bits of bfloat16: no cast of the model may round them

    def __init__(self, count: int, order: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.register_buffer("reflectors", torch.zeros(count, order, dtype=torch.int16, device=device))

    @staticmethod
    def of(vectors: Tensor) -> "Reflections":
        """Makes P from vectors (r, n) of any floating dtype, which are rounded to bfloat16."""
        made = Reflections(vectors.shape[0], vectors.shape[1], vectors.device)
        made.reflectors = vectors.to(torch.bfloat16).view(torch.int16)
        return made

    def reflect(self, y: Tensor) -> Tensor:
        """P y for every vector along the last axis: (..., n) float32."""
        V, T = self._factors()
        return y.float() - ((y.float() @ V) @ T.t()) @ V.t()

    def reflect_back(self, y: Tensor) -> Tensor:
        """Pᵀ y for every vector along the last axis: (..., n) float32; the inverse of `reflect`."""
        V, T = self._factors()
        return y.float() - ((y.float() @ V) @ T) @ V.t()

    def _factors(self) -> tuple[Tensor, Tensor]:
        V, T = compact(self.reflectors.view(torch.bfloat16).double())
        return V.float(), T.float()


def compact(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """V (n, r) and T (r, r) of reflectors (r, n); one of zeros reflects nothing. Differentiable."""
    size = vectors.norm(dim=1, keepdim=True)
    unit = vectors / torch.where(size > 0, size, torch.ones_like(size))
    gram = unit @ unit.t()
    half = torch.where(size[:, 0] > 0, 0.5, 1.0).to(gram)
    T = torch.linalg.inv(gram.triu(1) + torch.diag(half))
    return unit.t(), T


class Reflected:
    """The rotation P R: a Hadamard rotation or none, then reflections. It has the methods of `Rotation`."""

    def __init__(self, first: Rotation | Identity | Parted, reflections: Reflections) -> None:
        self.order, self._first, self._reflections = first.order, first, reflections

    def apply(self, x: Tensor) -> Tensor:
        """P R x for every vector along the last axis: (..., n) float32."""
        return self._reflections.reflect(self._first.apply(x))

    def inverse(self, y: Tensor) -> Tensor:
        """(P R)⁻¹ y for every vector along the last axis: (..., n) float32; the inverse of `apply`."""
        return self._first.inverse(self._reflections.reflect_back(y))

    def matrix(self) -> Tensor:
        """P R as a dense matrix (n, n) float32."""
        return self.apply(torch.eye(self.order, device=self._reflections.reflectors.device)).t()


AnyRotation = Rotation | Identity | Parted | Reflected


def rotation_for(order: int, seed: Seed | None, reflectors: Tensor | None = None, parts: int = 1) -> AnyRotation:
    """The rotation of vectors of an order.

    Args:
        order: n.
        seed: seed of the Hadamard rotation, with factors beside its signs if there are any; None for no rotation. That
            of weights is the `dual` of their input's.
        reflectors: (r, n), vectors of the reflections that follow it; None for none.
        parts: number of equal parts that are rotated each by itself (`rotation.parted`).
    """
    first = parted_rotation(order, seed, parts)
    return first if reflectors is None else Reflected(first, Reflections.of(reflectors))
