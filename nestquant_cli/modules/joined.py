"""Int8 rows of all the Linears with one input, laid one after another: one product with a few tokens serves all."""

import torch
from torch import Tensor

from .inputs import InputQuantizer

FEW_TOKENS = 4  # up to which a product reads every weight once instead of converting the matrix


class Joined:
    """A matrix of int8 rows on the CPU, ready for products with a few tokens.

    Args:
        v: (rows, padded features) int8, contiguous.
        row_scale: (rows,) int16, the bits of a bfloat16.
    """

    def __init__(self, v: Tensor, row_scale: Tensor) -> None:
        self.arrays = v.numpy(), row_scale.view(torch.uint16).numpy()

    def product(self, source: InputQuantizer, x: Tensor, rows: slice) -> Tensor | None:
        """Products (tokens, some of the rows) in x's dtype, of x (..., features), taken for all rows at once.

        Each of them is handed out once, for the caller to do with as it likes; who asks again gets a new one.

        Returns:
            None where a factor of the rotation's order is too large.
        """
        from ..kernels.cpu.product import rotated_product

        seed = source.seed
        assert seed is not None

        def make(flat: Tensor) -> Tensor | None:
            return rotated_product(flat, seed, *self.arrays)

        taken, y = source.once(x, self, lambda flat: (set(), make(flat)))
        if rows.start in taken:
            y = make(x.reshape(-1, source.features))
        taken.add(rows.start)
        return None if y is None else y[:, rows]


def takes(source: InputQuantizer, x: Tensor) -> bool:
    """Whether x is what `Joined` is for: few tokens on the CPU, neither coded nor differentiated."""
    few = x.is_cpu and x.numel() <= FEW_TOKENS * source.features
    return few and source.code is None and source.plain


def join(v: list[Tensor], row_scale: list[Tensor]) -> tuple[list[Tensor], list[Tensor], Joined]:
    """Concatenates int8 matrices and their scales along the rows.

    Args:
        v: (rows_i, padded features) int8 each.
        row_scale: (rows_i,) int16 each.

    Returns:
        the matrices and the scales again, as views of the concatenated ones, and the whole as `Joined`.
    """
    rows = [part.shape[0] for part in v]
    whole, scales = torch.cat(v), torch.cat(row_scale)
    return list(whole.split(rows)), list(scales.split(rows)), Joined(whole, scales)
