"""Int8 rows of all the Linears with one input, laid one after another: one product with a few tokens serves all."""

import torch
from torch import Tensor

from ..kernels import for_device
from .inputs import InputQuantizer


class Joined:
    """A matrix of int8 rows, ready for products with a few tokens.

    Args:
        v: (rows, padded features) int8, contiguous.
        row_scale: (rows,) int16, the bits of a bfloat16.
    """

    def __init__(self, v: Tensor, row_scale: Tensor) -> None:
        self.weight = v, row_scale
        self._kernels = for_device(v.device)

    def product(self, source: InputQuantizer, x: Tensor, rows: slice) -> Tensor:
        """Products (tokens, some of the rows) in x's dtype, of x (..., features), taken for all rows at once.

        Each of them is handed out once, for the caller to do with as it likes; who asks again gets a new one.
        """
        multiply, seed, weight, parts = self._kernels.rotated_product, source.seed, self.weight, source.parts
        assert seed is not None
        taken, y = source.once(x, self, lambda flat: (set(), multiply(flat, seed, *weight, parts)))
        if rows.start in taken:
            y = multiply(x.reshape(-1, source.features), seed, *weight, parts)
        taken.add(rows.start)
        return y if rows.stop - rows.start == y.shape[1] else y[:, rows]


def join(v: list[Tensor], row_scale: list[Tensor]) -> tuple[list[Tensor], list[Tensor], Joined]:
    """Concatenates int8 matrices and their scales along the rows.

    Args:
        v: (rows_i, padded features) int8 each.
        row_scale: (rows_i,) int16 each.

    Returns:
        the matrices and the scales again, as views of the concatenated ones, and the whole as `Joined`.
    """
    rows = [matrix.shape[0] for matrix in v]
    whole, scales = torch.cat(v), torch.cat(row_scale)
    return list(whole.split(rows)), list(scales.split(rows)), Joined(whole, scales)
