"""The randomized Hadamard rotation R = blockdiag(H_b / √n_b) · diag(signs), as a fast transform.

The signs may have factors beside them (`rotation.seeds`); R is then no rotation, and `inverse` is still its inverse.

H_b is a Kronecker product F₁ ⊗ F₂ ⊗ …, so a vector is seen as an array (p₁, p₂, …), the first axis varying slowest,
and every F is applied along its own axis by a small dense product. docs/rotation.md defines R to the bit.
"""

from functools import cache
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nestquant_cli.base.device import on_host
from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.rotation.orders import atoms, block_orders, dense_groups
from nestquant_cli.rotation.paley import paley_matrix
from nestquant_cli.rotation.seeds import ScaledSeed, Seed
from nestquant_cli.rotation.signs import signs

# Coordinates that are transformed at once on the CPU: 1 MB of float32, so that what lies between two factors stays in
# the caches and in memory that the allocator hands out again.
_PIECE = 1 << 18

# Cost of one pass over the data in multiply-adds per coordinate, for `dense_groups`: memory is relatively slower on a
# GPU. Only speed depends on it; the GPU's value was never measured.
_OVERHEAD_HOST, _OVERHEAD_GPU = 24, 96


def _sylvester_or_paley(atom: int) -> NDArray[np.int8]:
    return np.array([[1, 1], [1, -1]], dtype=np.int8) if atom == 2 else paley_matrix(atom)


def factor_matrix(group: tuple[int, ...]) -> NDArray[np.int8]:
    """The Kronecker product of some atoms, (p, p) of ±1."""
    matrix = np.ones((1, 1), dtype=np.int8)
    for atom in group:
        matrix = np.kron(matrix, _sylvester_or_paley(atom))
    return matrix


@cache
def _factor(group: tuple[int, ...], device: torch.device) -> Tensor:
    """The Kronecker product of a group in float32, shared by all rotations on a device."""
    return _constant(factor_matrix(group).astype(np.float32), device)


def _constant(values: NDArray[np.float32], device: torch.device) -> Tensor:
    # A cached tensor born under inference_mode could not take part in autograd later.
    with torch.inference_mode(False):
        return torch.from_numpy(values).to(device)


def _hadamard(y: Tensor, order: int, transposed: bool) -> Tensor:
    """H y or Hᵀ y, without the 1/√n, for each row of y (rows, order) float32, contiguous."""
    overhead = _OVERHEAD_HOST if on_host(y.device) else _OVERHEAD_GPU
    rows = y.shape[0]
    before, after = rows, order
    for group in dense_groups(order, overhead):
        factor = _factor(group, y.device)
        if transposed:
            factor = factor.t()
        p = factor.shape[0]
        after //= p
        if after == 1:
            y = torch.mm(y.view(before, p), factor.t())  # (before, p)
        else:
            y = torch.bmm(factor.expand(before, p, p), y.view(before, p, after))  # (before, p, after)
        before *= p
    return y.view(rows, order)


class Rotation:
    """A fixed matrix R of one order, orthogonal where the seed has no factors; get it from `rotation`, which caches.

    Attributes:
        order: n, the length of the vectors.
        seed: the seed of the signs, with the factors beside them.
        block_orders: orders of the Hadamard blocks along the diagonal, largest first; they sum to n.
        signs: (n,) int8 of ±1.
        scale: (n,) float32, signs·factors/√(order of the block): what coordinates are multiplied by in front of the ±1
            matrix.
    """

    def __init__(self, order: int, seed: Seed) -> None:
        self.order = order
        self.seed = seed
        self.block_orders: tuple[int, ...] = block_orders(order)
        self.signs = signs(order, seed.seed if isinstance(seed, ScaledSeed) else seed)
        roots = np.repeat(1 / np.sqrt(np.array(self.block_orders, dtype=np.float64)), self.block_orders)
        factors = self._factors(seed)
        self.scale = (self.signs * roots * factors).astype(np.float32)
        self._back = (self.signs * roots / factors).astype(np.float32)
        self._scales: dict[tuple[torch.device, bool], Tensor] = {}

    def _factors(self, seed: Seed) -> NDArray[np.float64]:
        if not isinstance(seed, ScaledSeed):
            return np.ones(self.order)
        if len(seed.factors) != self.order:
            raise NestQuantError(
                f"a rotation of order {self.order} got {len(seed.factors)} factors",
                "none was made",
                "pass one a channel",
            )
        return seed.values()

    def __reduce__(self) -> tuple[object, tuple[int, Seed]]:
        return rotation, (self.order, self.seed)

    def __repr__(self) -> str:
        return f"Rotation(order={self.order}, seed={self.seed}, block_orders={self.block_orders})"

    def apply(self, x: Tensor) -> Tensor:
        """R x for every vector along the last axis.

        Args:
            x: (..., n), any floating dtype, any strides, any device.

        Returns:
            (..., n) float32, contiguous, on the device of x. Differentiable.

        Raises:
            NestQuantError: the last axis is not n, or the dtype is not floating.
        """
        return self._run(x, transposed=False)

    def inverse(self, y: Tensor) -> Tensor:
        """R⁻¹ y for every vector along the last axis, which is Rᵀ y without factors: the inverse of `apply`.

        Args:
            y: (..., n), any floating dtype, any strides, any device.

        Returns:
            (..., n) float32, contiguous, on the device of y. Differentiable.

        Raises:
            NestQuantError: the last axis is not n, or the dtype is not floating.
        """
        return self._run(y, transposed=True)

    def matrix(self) -> Tensor:
        """R as a dense (n, n) float32 tensor on the CPU, built entry by entry; for tests and small orders."""
        dense = torch.zeros(self.order, self.order, dtype=torch.float32, device="cpu")
        start = 0
        for size in self.block_orders:
            block = slice(start, start + size)
            dense[block, block] = _factor(atoms(size), torch.device("cpu"))
            start += size
        return dense * self._scale_on(torch.device("cpu"), False)

    def _scale_on(self, device: torch.device, back: bool) -> Tensor:
        if (device, back) not in self._scales:
            self._scales[device, back] = _constant(self._back if back else self.scale, device)
        return self._scales[device, back]

    def _run(self, x: Tensor, transposed: bool) -> Tensor:
        if x.ndim == 0 or x.shape[-1] != self.order or not x.dtype.is_floating_point:
            raise NestQuantError(
                f"a rotation of order {self.order} got a tensor of shape {tuple(x.shape)} and dtype {x.dtype}",
                "it was not rotated",
                f"pass a floating tensor whose last axis is {self.order}",
            )
        if torch.amp.is_autocast_available(x.device.type):
            # The small products must stay in float32 also inside a caller's autocast region.
            with torch.autocast(x.device.type, enabled=False):
                return self._in_pieces(x, transposed)
        return self._in_pieces(x, transposed)

    def _in_pieces(self, x: Tensor, transposed: bool) -> Tensor:
        rows = x.reshape(x.numel() // self.order, self.order)
        step = max(1, _PIECE // self.order)
        step -= step % 32 if step > 32 else 0  # matrix products are fastest on even row counts
        differentiated = x.requires_grad and torch.is_grad_enabled()
        if not on_host(x.device) or len(rows) <= step or differentiated:
            return self._rotate(rows, transposed).view(x.shape)
        out = torch.empty(rows.shape, dtype=torch.float32, device=x.device)
        for start in range(0, len(rows), step):
            piece = slice(start, start + step)
            out[piece] = self._rotate(rows[piece], transposed)
        return out.view(x.shape)

    def _rotate(self, rows: Tensor, transposed: bool) -> Tensor:
        """R or R⁻¹ times each row of (rows, n)."""
        scale = self._scale_on(rows.device, transposed)
        y = rows.to(torch.float32)
        if transposed:
            return self._blocks(y, transposed) * scale
        return self._blocks(y * scale, transposed)

    def _blocks(self, y: Tensor, transposed: bool) -> Tensor:
        if len(self.block_orders) == 1:
            return _hadamard(y.contiguous(), self.order, transposed)
        parts = torch.split(y, list(self.block_orders), dim=-1)
        return torch.cat([_hadamard(p.contiguous(), p.shape[-1], transposed) for p in parts], dim=-1)


class Identity:
    """The identity, with the methods of `Rotation`, where nothing is rotated."""

    def __init__(self, order: int) -> None:
        self.order = order

    def apply(self, x: Tensor) -> Tensor:
        """Returns x (..., n) in float32."""
        return x.to(torch.float32)

    def inverse(self, y: Tensor) -> Tensor:
        """Returns y (..., n) in float32."""
        return y.to(torch.float32)

    def matrix(self) -> Tensor:
        """The identity matrix (n, n) float32."""
        return torch.eye(self.order)


@overload
def rotation(order: int, seed: Seed) -> Rotation: ...
@overload
def rotation(order: int, seed: Seed | None) -> Rotation | Identity: ...
@cache
def rotation(order: int, seed: Seed | None) -> Rotation | Identity:
    """The randomized Hadamard rotation of an order: deterministic, and cached for each order and seed.

    The demo model's input with the heaviest tails has an entry of 38 times the token's root mean square before the
    rotation, and of 4.3 times after it (docs/how-it-works.md).

    Args:
        order: n ≥ 1, the length of the vectors.
        seed: 0 ≤ seed < 2^64, with factors beside the signs if there are any; None for no rotation.

    Raises:
        NestQuantError: order or seed out of range.

    Example:
        >>> r = rotation(576, seed=0)
        >>> x = torch.randn(4, 576)
        >>> torch.allclose(r.inverse(r.apply(x)), x, atol=1e-5)
        True
    """
    return Identity(order) if seed is None else Rotation(order, seed)
