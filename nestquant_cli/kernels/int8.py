"""Exact products of int8 matrices, by torch's own kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor

_FEWEST_ROWS_CUDA = 17  # torch._int_mm takes more than 16 rows there, and sizes that are multiples of 8


def integer_product(a: Tensor, b: Tensor) -> Tensor:
    """a·bᵀ of int8 (m, k) and (n, k), exact: (m, n) int32. On a GPU k must be a multiple of 8."""
    if not a.is_cuda:
        return torch._int_mm(a, b.t())
    rows = max(_FEWEST_ROWS_CUDA, a.shape[0])
    sums = torch._int_mm(F.pad(a, (0, 0, 0, rows - a.shape[0])), F.pad(b, (0, 0, 0, -b.shape[0] % 8)).t())
    return sums[: a.shape[0], : b.shape[0]]
