"""A Linear with a weight of integers on uniform grids, in the same two forms as a nested one.

With one scale a row its products are those of a nested weight, exact int8 where the input is int8. With groups the
weight is multiplied out in float32, some rows at a time.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...e8.digits import pack_digits, unpack_zeros
from ...modules.linear import QuantizedLinear
from ...modules.multiply import WeightForm
from ..row_scale import row_scale_of
from .code import IntegerCode


class IntegerLinear(QuantizedLinear):
    """Replaces nn.Linear. State: `words`, `row_scale`, `zeros` unless the code is symmetric, and `bias`."""

    code: IntegerCode
    zeros: Tensor  # (out_features, bytes) uint8, of each group, unless the code is symmetric

    @classmethod
    def form_of(cls, code: Any, resident: str) -> WeightForm:
        """One scale a row unless there are groups; torch reads the words."""
        return WeightForm(resident if code.int8 else "packed", integers=code.group is None, int8=code.int8)

    def decode(self, start: int, stop: int) -> Tensor:
        """Rows start … stop of V (rows, padded), int8 or int16."""
        zeros = None if self.code.symmetric else self.stored("zeros")[start:stop]
        return self.code.decode(self.stored("words")[start:stop], zeros, self.source.padded)

    def values(self, start: int, stop: int) -> Tensor:
        """Rows start … stop of the weight, rotated: (rows, padded) float32."""
        if self.code.group is None:
            return super().values(start, stop)
        scale = self.code.spread(row_scale_of(self.stored("row_scale")[start:stop]), self.source.padded)
        return self.integers(start, stop).float() * scale

    def to_int8(self) -> Mapping[str, Tensor]:
        """v, which says all of the words."""
        return {"v": self.decoded()}

    def to_words(self) -> Tensor:
        """The words (out_features, bytes) uint8 of v."""
        zero: Tensor | int = self.code.levels // 2
        if not self.code.symmetric:
            count = len(self.code.groups(self.source.padded))
            zeros = unpack_zeros(self.zeros, count, self.code.bits).to(torch.int16)
            zero = self.code.spread(zeros, self.source.padded)
        return pack_digits((self.v.to(torch.int16) + zero).to(torch.uint8), self.code.bits)

    def scale_gradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Gradient of the scales of groups (out_features, groups) float32, from that of the product.

        Args:
            x: (..., in_features), the input of the product.
            gradient: (tokens, out_features).
        """
        products = (gradient.float().t() @ self.source.floats(x)).mul_(self.decoded())
        return torch.stack([products[:, group].sum(1) for group in self.code.groups(self.source.padded)], dim=1)

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """Wᵀ ∂y with the dequantized W: (tokens, out_features) to (tokens, in_features), in its dtype."""
        rotated = gradient @ self.values(0, self.out_features).to(gradient.dtype)
        return self.source.unrotate_rows(rotated.float()).to(gradient.dtype)
