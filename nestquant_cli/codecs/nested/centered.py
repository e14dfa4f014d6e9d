"""Nested codes of vectors with something in common: their center is subtracted where that makes them smaller.

Inputs of Linears and keys are far from centered, so that much of what is rounded is the same in each vector, and the
error of a code is in proportion to what it rounds. Each vector says with one mark whether its center was subtracted: an
outlier of another direction would only grow by it. The center is coded as any vector is and is then exactly what is
subtracted, so no error comes from it; a product with a weight adds the weight's product with the center again.
"""

import struct
from base64 import b64decode, b64encode
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...e8.shape import CodeShape
from ..vectors import Rounded, VectorCode
from .fit import ScaledCode, fit_rows

WORTH = 0.1  # of the vectors' energy, which a center must take away to be kept
_ROUNDS = 4  # of choosing the vectors that are nearer to the center and moving it to their mean
_SIGN = 128  # of a packed vector's scale, in its last byte: says that the center was subtracted


@dataclass(frozen=True)
class CenteredCode:
    """A nested code behind the subtraction of a center.

    Attributes:
        scaled: code of what is left when the center is subtracted.
        packed: the centers as `scaled` packs them, in the rotated basis: one for each head, or one for an input.
    """

    scaled: ScaledCode
    packed: tuple[bytes, ...]

    def centers(self, entries: int, device: torch.device | None = None) -> Rounded:
        """The centers as integers and their sizes, rows of `entries`."""
        return _centers(self, entries, device or torch.device("cpu"))

    def center(self, entries: int, device: torch.device | None = None) -> Tensor:
        """The center of an input, (entries,) float32."""
        return _center(self, entries, device or torch.device("cpu"))

    def round(self, x: Tensor) -> Rounded:
        """See `VectorCode`, for an input."""
        nearer, center = self._nearer(x, 1)
        rest = self.scaled.round(x - nearer[:, None] * center)
        return Rounded(rest.values, rest.scale, nearer, center)

    def _nearer(self, x: Tensor, run: int) -> tuple[Tensor, Tensor]:
        """Which rows a subtraction makes smaller, (rows,) bool, and of what."""
        center = self._own(x.shape[0], x.shape[1], run, x.device)
        return 2 * (x * center).sum(-1) > center.square().sum(-1), center

    def _own(self, rows: int, entries: int, run: int, device: torch.device) -> Tensor:
        """The center of each row, (rows, entries) or (1, entries) float32."""
        return own_centers(self.centers(entries, device).dequantized(), rows, run)

    def vector_bytes(self, entries: int) -> int:
        """See `VectorCode`; the mark is the sign of the scale."""
        return self.scaled.vector_bytes(entries)

    def pack(self, x: Tensor, run: int = 1) -> Tensor:
        """See `VectorCode`; row i belongs to head (i div run) mod heads."""
        nearer, center = self._nearer(x, run)
        packed = self.scaled.pack(x - nearer[:, None] * center)
        packed[:, -1] |= nearer.to(torch.uint8) * _SIGN
        return packed

    def unpack(self, packed: Tensor, entries: int, run: int = 1) -> Rounded:
        """See `VectorCode`."""
        marked, rest = self.split(packed, entries)
        return Rounded(rest.values, rest.scale, marked, self._own(len(packed), entries, run, packed.device))

    def split(self, packed: Tensor, entries: int) -> tuple[Tensor, Rounded]:
        """Which of packed vectors (rows, bytes) are centered, (rows,) bool, and what is left of each vector."""
        unmarked = packed.clone()
        unmarked[:, -1] &= _SIGN - 1
        return packed[:, -1] >= _SIGN, self.scaled.unpack(unmarked, entries)

    def fitted(self) -> dict[str, Any]:
        """See `VectorCode`."""
        return self.scaled.fitted() | {"centers": [b64encode(center).decode() for center in self.packed]}


def own_centers(centers: Tensor, rows: int, run: int) -> Tensor:
    """The center of each row, (rows, entries), or (1, entries) for all; row i belongs to head (i div run) mod heads."""
    if len(centers) == 1:
        return centers
    return centers[torch.arange(rows, device=centers.device) // run % len(centers)]


def nested_code(scaled: VectorCode) -> ScaledCode | None:
    """The nested code that kernels work with, of a code with centers or without; None for other codes."""
    if isinstance(scaled, CenteredCode):
        return scaled.scaled
    return scaled if isinstance(scaled, ScaledCode) else None


def centered_from(scaled: ScaledCode, centers: Any) -> CenteredCode:
    """The inverse of `CenteredCode.fitted`, given the code of the rest and the item "centers".

    Raises:
        ValueError: these are no centers of one size with finite scales.
    """
    if not isinstance(centers, list) or not centers or not all(isinstance(center, str) for center in centers):
        raise ValueError("centers must be a list of texts")
    packed = tuple(b64decode(center, validate=True) for center in centers)
    if len({len(center) for center in packed}) != 1:
        raise ValueError("centers have different sizes")
    if not all(center and 0 < _scale(center) < float("inf") for center in packed):
        raise ValueError("a center has a scale that is none")
    return CenteredCode(scaled, packed)


def _scale(center: bytes) -> float:
    value: float = struct.unpack("<f", bytes(2) + center[-2:])[0]
    return value


@lru_cache(maxsize=4096)
def _centers(code: CenteredCode, entries: int, device: torch.device) -> Rounded:
    with torch.inference_mode(False):
        packed = torch.tensor([list(center) for center in code.packed], dtype=torch.uint8, device="cpu")
        found = code.scaled.unpack(packed, entries)
        assert found.scale is not None
        return Rounded(found.values.to(device), found.scale.to(device))


@lru_cache(maxsize=4096)
def _center(code: CenteredCode, entries: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _centers(code, entries, device).dequantized()[0]


def fit_centered(vectors: Tensor, shape: CodeShape, seed: int) -> VectorCode:
    """A nested code, with centers where they take enough of the vectors' energy away.

    Args:
        vectors: (heads, n, entries) float32 in the rotated basis; an input is one head.
        shape: shape of the code.
        seed: seed of the choice of blocks.
    """
    square = vectors.square().sum(-1)  # (heads, n)
    weight = torch.where(square > 0, 1 / square, torch.zeros_like(square))  # errors count relative to their vector
    center = _mean(vectors, weight)
    for _ in range(_ROUNDS):
        center = _mean(vectors, weight * (_gain(vectors, center) > 0))
    gain = _gain(vectors, center).clamp(min=0)
    counted = int((weight > 0).sum())
    if not counted or float((gain * weight).sum()) < WORTH * counted:
        return fit_rows(vectors.flatten(0, 1), shape, seed)
    scaled = fit_rows((vectors - (gain > 0)[..., None] * center).flatten(0, 1), shape, seed)
    packed = scaled.pack(center[:, 0])
    return CenteredCode(scaled, tuple(bytes(row) for row in packed.cpu().tolist()))


def _gain(vectors: Tensor, center: Tensor) -> Tensor:
    """Energy (heads, n) that subtracting (heads, 1, entries) takes from each of (heads, n, entries)."""
    return 2 * (vectors @ center.mT)[..., 0] - center.square().sum(-1)


def _mean(vectors: Tensor, weight: Tensor) -> Tensor:
    """(heads, 1, entries), the mean of (heads, n, entries) under weights (heads, n)."""
    total = weight.sum(-1)[:, None, None]
    return (weight[:, None] @ vectors) / torch.where(total > 0, total, torch.ones_like(total))
