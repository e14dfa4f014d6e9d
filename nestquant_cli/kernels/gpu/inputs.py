"""Tokens of an input on the GPU: torch rotates, Triton rounds."""

from torch import Tensor

from ...e8.code import NestedCode
from ...rotation.seeds import Seed
from ..reference import inputs as reference
from . import nested


def encode_tokens(
    x: Tensor, order: int, seed: Seed | None, code: NestedCode, unit: float, center: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rotates tokens and rounds each to the code: v (tokens, order), sizes (tokens,), which are centered."""
    return reference.encode_tokens(x, order, seed, code, unit, center, nested)
