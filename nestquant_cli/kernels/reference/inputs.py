"""Tokens of an input, rotated and rounded, in plain torch.

Rounding goes by a device's own kernels where it has any: `rounding` is their module, with `quantize`, `pack` and
`unpack` of `contract.codes`.
"""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from ...e8.code import NestedCode
from ...e8.vectors import row_scale, subtract_centers
from ...rotation.seeds import Seed
from ...rotation.transform import rotation
from . import nested


class Rounding(Protocol):
    """What rounds rows to a nested code, the functions of `contract.codes`."""

    def quantize(self, x: Tensor, scale: Tensor, code: NestedCode) -> tuple[Tensor, Tensor, int]: ...

    def pack(self, v: Tensor, index: Tensor, code: NestedCode) -> Tensor: ...

    def unpack(self, packed: Tensor, entries: int, code: NestedCode) -> Tensor: ...


def rotates(order: int, seed: int) -> bool:
    """False: tokens are rotated in several passes, to float32: `contract.inputs.rotates`."""
    return False


def rotate_tokens(x: Tensor, order: int, seed: Seed | None) -> Tensor:
    """R x of tokens (tokens, features ≤ order), padded with zeros: `contract.inputs.rotate_tokens`, always float32."""
    padding = order - x.shape[1]
    return rotation(order, seed).apply(F.pad(x, (0, padding)) if padding else x)


def encode_tokens(
    x: Tensor,
    order: int,
    seed: Seed | None,
    code: NestedCode,
    unit: float,
    center: Tensor | None = None,
    rounding: Rounding = nested,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rotates tokens, subtracts the center and rounds, one after the other: `contract.inputs.encode_tokens`."""
    y, centered = rotate_tokens(x, order, seed), None
    if center is not None:
        centered, y = subtract_centers(y, center[None])
    scale = row_scale(y, unit)
    return rounding.quantize(y, scale, code)[0], scale, centered


def fingerprint(x: Tensor) -> Tensor | int:
    """What differs after x was changed in place: a copy of x."""
    return x.clone()
