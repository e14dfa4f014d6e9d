"""Centers of vectors: what the vectors of one input, or of one head, have in common.

A center is subtracted from the vectors that it makes smaller, and from no others: an outlier of another direction
would only grow by it.
"""

import torch
from torch import Tensor


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
