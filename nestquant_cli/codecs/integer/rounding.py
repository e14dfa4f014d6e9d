"""Rounds matrices to integers: plainly, or with the feedback that makes it GPTQ (arXiv 2210.17323)."""

import torch
from torch import Tensor

from ...e8.digits import pack_digits, pack_zeros
from ...quantization.factors import Feedback
from ..ldlq import ldlq
from ..row_scale import row_scale_bits
from ..weights import RoundedRows, by_matrix
from .code import IntegerCode


def quantize_rows(step: Feedback, rows: list[int], code: IntegerCode) -> RoundedRows:
    """Rounds stacked matrices, the last column first; arguments as in `Codec.quantize`."""
    rounder = IntegerRounder(step.target, rows, code)
    ldlq(step.target, step.lower, rounder.round, rounder.columns, rounder.panel, rounder.open)
    return rounder.finish()


class IntegerRounder:
    """Rounds a matrix column by column; each group takes its grid from its targets when its first column comes.

    Args:
        target: (m, n) float32.
        rows: number of rows of each matrix that is stacked in it.
        code: code of the weights.

    Attributes:
        columns: columns that are rounded at once.
        panel: columns between two calls of `open`, a group; None where a row has one grid.
    """

    columns = 1

    def __init__(self, target: Tensor, rows: list[int], code: IntegerCode) -> None:
        self.code, self.rows, self.panel = code, rows, code.group
        m, n = target.shape
        count = len(code.groups(n))
        self._digits = torch.empty(m, n, dtype=torch.uint8, device=target.device)
        self._scale = torch.empty(m, count, device=target.device)
        self._zero = torch.empty(m, count, device=target.device)
        self._group = 0
        if code.group is None:
            self._fit(target, 0)

    def open(self, target: Tensor, start: int) -> None:
        """Fits the grids of a group before its columns are rounded: target (m, width), `start` its first column."""
        if self.code.group is not None:
            self._fit(target, -(-start // self.code.group))

    def _fit(self, target: Tensor, group: int) -> None:
        scale, zero = self.code.best_grid(target)
        self._group = group
        self._scale[:, group], self._zero[:, group] = scale[:, 0], zero[:, 0]

    def round(self, block: Tensor, number: int) -> Tensor:
        """The rounded values of a target (m, 1), column `number` of the row."""
        scale, zero = self._scale[:, self._group, None], self._zero[:, self._group, None]
        digits = self.code.digits(block, scale, zero)
        self._digits[:, number : number + 1] = digits.to(torch.uint8)
        return scale * (digits - zero)

    def finish(self) -> RoundedRows:
        """All that was rounded."""
        code, n = self.code, self._digits.shape[1]
        bits = row_scale_bits(self._scale)
        tensors = {
            "words": pack_digits(self._digits, code.bits),
            "row_scale": bits[:, 0].contiguous() if code.group is None else bits,
        }
        if not code.symmetric:
            tensors["zeros"] = pack_zeros(self._zero.to(torch.uint8), code.bits)
        values = (self._digits.float() - code.spread(self._zero, n)) * code.spread(self._scale, n)
        return RoundedRows(
            by_matrix(tensors, self.rows),
            values,
            [code] * len(self.rows),
            [{"code": code.to_dict()} for _ in self.rows],
        )
