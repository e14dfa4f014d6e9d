"""Scales of rows and groups as every codec stores them: int16 with the bits of bfloat16, so no cast rounds them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def row_scale_of(bits: Tensor) -> Tensor:
    """float32 scales from the stored bits (int16) of bfloat16, of any shape."""
    return bits.view(torch.bfloat16).float()


def row_scale_bits(scale: Tensor) -> Tensor:
    """Bits (int16) of the bfloat16 nearest to each scale."""
    return scale.to(torch.bfloat16).view(torch.int16)


def check_row_scales(bits: NDArray[Any]) -> str | None:
    """What is wrong with scales (rows,) or (rows, groups), int16 bits of bfloat16: each must be finite and positive."""
    scale = row_scale_of(torch.from_numpy(np.array(bits)))
    rows = torch.nonzero(~(torch.isfinite(scale) & (scale > 0)))
    if not len(rows):
        return None
    at = tuple(rows[0].tolist())
    return f"the scale of row {', group '.join(map(str, at))} is {float(scale[at])}, not finite and positive"
