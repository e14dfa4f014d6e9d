"""Vectors of a nested code beyond their blocks: the scale of each, and the center that may have been subtracted.

A packed vector is its words followed by the two bytes of its bfloat16 scale. The sign of the scale says whether a
center was subtracted. A center is what the vectors of one input, or of one head, have in common; it is subtracted from
the vectors that it makes smaller and from no others, as an outlier of another direction would only grow by it.
"""

import torch
from torch import Tensor

from .code import NestedCode, row_bytes

SCALE_BYTES = 2  # of a packed vector, a bfloat16


def row_scale(x: Tensor, unit: float) -> Tensor:
    """`unit` times the root mean square of each row of x (rows, n): (rows,) float32; 1 for a row of zeros."""
    scale = x.float().square().mean(-1).sqrt() * unit
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def split_vectors(packed: Tensor, size: int, code: NestedCode) -> tuple[Tensor, Tensor]:
    """Words (rows, row bytes) uint8 of packed vectors (rows, bytes), and scales (rows,) float32 with their signs."""
    width = row_bytes(size, code.word_bits)
    return packed[:, :width], stored_scales(packed, width, 1)[:, 0]


def stored_scales(packed: Tensor, start: int, count: int) -> Tensor:
    """Scales (rows, count) float32 from the bytes of packed vectors (rows, bytes) that begin at `start`."""
    # Copied, because 16 bits are read at even places only, and a single row is no copy without being asked for.
    scales = packed[:, start : start + SCALE_BYTES * count].clone(memory_format=torch.contiguous_format)
    return scales.view(torch.bfloat16).float()


def subtract_centers(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Subtracts centers where 2 ⟨x, c⟩ > ‖c‖², which is where ‖x − c‖ < ‖x‖.

    Args:
        x: (rows, n) float32.
        centers: (rows, n) or (1, n) float32, one for each row or one for all.

    Returns:
        which rows had their center subtracted, (rows,) bool, and what is left of x, (rows, n).
    """
    centered = 2 * (x * centers).sum(-1) > centers.square().sum(-1)
    return centered, x - centered[:, None] * centers


def centers_of_rows(centers: Tensor, rows: int, run: int) -> Tensor:
    """The center of each row, (rows, n) of centers (heads, n); (1, n) where one head has all rows.

    Row i belongs to head (i div run) mod heads.
    """
    if len(centers) == 1:
        return centers
    return centers[torch.arange(rows, device=centers.device) // run % len(centers)]
