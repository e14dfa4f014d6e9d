"""Head vectors on the GPU: torch rotates, Triton rounds, packs and reads words."""

from torch import Tensor

from ...e8.code import NestedCode
from ..reference import heads as reference
from . import nested


def encode_heads(
    x: Tensor,
    code: NestedCode,
    unit: float,
    seed: int | None,
    restore: bool,
    centers: Tensor | None = None,
    run: int = 1,
) -> tuple[Tensor, Tensor | None]:
    """Rotates, codes and packs vectors (rows, n): (rows, bytes) uint8, and decoded (rows, n) if asked for."""
    return reference.encode_heads(x, code, unit, seed, restore, centers, run, nested)


def decode_heads(
    packed: Tensor, size: int, code: NestedCode, seed: int | None, centers: Tensor | None = None, run: int = 1
) -> Tensor:
    """Packed vectors (rows, bytes) to (rows, size) float32."""
    return reference.decode_heads(packed, size, code, seed, centers, run, nested)
