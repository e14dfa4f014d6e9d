"""The packed form of keys and values: each head's vector of a token, rotated and coded by itself, is one uint8 vector.

States are (…, heads, tokens, head size), packed states (…, heads, tokens, bytes).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..base.errors import NestQuantError
from ..codecs.vectors import VectorCode
from ..e8.code import BLOCK


@dataclass(frozen=True)
class CacheCodes:
    """The codes of one layer's keys and values."""

    keys: VectorCode
    values: VectorCode

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as config.json has it."""
        return {"keys": self.keys.fitted(), "values": self.values.fitted()}


def pack_heads(x: Tensor, code: VectorCode, seed: int | None) -> Tensor:
    """Codes head vectors.

    Args:
        x: (..., heads, tokens, head size) floating point, head size a multiple of 8. A code without centers takes
            vectors (..., head size) of any heads.
        code: their code.
        seed: seed of the rotation signs; None does not rotate.

    Returns:
        (..., heads, tokens, bytes) uint8.
    """
    packed, _ = code.encode_heads(_rows(x), seed, _run(x), restore=False)
    return packed.view(*x.shape[:-1], packed.shape[1])


def round_heads(x: Tensor, code: VectorCode, seed: int | None) -> tuple[Tensor, Tensor]:
    """`pack_heads` and what `unpack_heads` makes of it in the dtype of x, without reading the words again."""
    packed, rounded = code.encode_heads(_rows(x), seed, _run(x), restore=True)
    assert rounded is not None
    return packed.view(*x.shape[:-1], packed.shape[1]), rounded.to(x.dtype).view(x.shape)


def unpack_heads(packed: Tensor, head_size: int, code: VectorCode, seed: int | None, dtype: torch.dtype) -> Tensor:
    """The inverse of `pack_heads` up to the rounding: (..., bytes) uint8 to (..., head size) of `dtype`."""
    rows = code.decode_heads(packed.reshape(-1, packed.shape[-1]), head_size, seed, _run(packed))
    return rows.to(dtype).view(*packed.shape[:-1], head_size)


def _rows(x: Tensor) -> Tensor:
    return x.detach().reshape(-1, x.shape[-1])  # rounding has no gradient


def _run(x: Tensor) -> int:
    """Vectors of a head that follow each other."""
    return x.shape[-2] if x.dim() > 1 else 1


def check_head_size(size: int) -> None:
    """Raises NestQuantError for a head size that blocks of 8 do not divide."""
    if size % BLOCK:
        raise NestQuantError(
            f"the head size {size} is not a multiple of {BLOCK}",
            "keys and values cannot be quantized",
            "quantize with --kv-bits 16",
        )


def check_heads(code: VectorCode, states: Tensor) -> None:
    """Raises NestQuantError where the code's centers or factors are not of states (batch, heads, tokens, head size)."""
    heads, size = states.shape[1], states.shape[-1]
    if not code.fits(heads, size):
        raise NestQuantError(
            f"config.json has no centers or factors for {heads} heads of size {size}",
            "keys cannot be packed",
            "fetch or quantize the checkpoint again",
        )
