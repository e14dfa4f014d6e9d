"""A Linear with a weight of integers on uniform grids (`codecs.integer.code`), in the same two forms as a nested one.

With one scale a row its products are those of a nested weight, exact int8 where the input is int8. With groups the
weight is multiplied out in float32, some rows at a time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...modules.linear import QuantizedLinear
from ...modules.product import PANEL, product
from ..digits import pack_digits, unpack_zeros
from ..row_scale import row_scale_of
from .code import IntegerCode


class IntegerLinear(QuantizedLinear):
    """Replaces nn.Linear. State: `words`, `row_scale`, `zeros` unless the code is symmetric, and `bias`."""

    code: IntegerCode  # type: ignore[assignment] # what the base does with a code, this class does itself

    @property
    def _stored(self) -> tuple[str, ...]:
        return ("row_scale",) if self.code.symmetric else ("row_scale", "zeros")

    def resident_bytes(self) -> int:
        """Bytes of the weight in memory, scales and zeros included."""
        form = "v" if self.resident == "int8" else "words"
        return sum(int(getattr(self, name).nbytes) for name in (form, *self._stored))

    def hold_packed(self) -> None:
        """Goes over to the packed form."""
        if self.resident == "int8":
            words = self._repacked()
            del self.v
            self._joined = self._shifted = None  # they hold v
            self.register_buffer("words", words)

    def hold_int8(self) -> bool:
        """Goes over to the int8 form and frees the words; returns whether the layer has that form now."""
        if self.resident == "packed" and self.code.int8:
            v = self.decoded()
            del self.words
            self._shifted = None  # it holds the words
            self.register_buffer("v", v, persistent=False)
        return self.resident == "int8"

    def _repacked(self) -> Tensor:
        zero: Tensor | int = self.code.levels // 2
        if not self.code.symmetric:
            count = len(self.code.groups(self.source.padded))
            zeros = unpack_zeros(self.zeros, count, self.code.bits).to(torch.int16)
            zero = self.code.spread(zeros, self.source.padded)
        return pack_digits((self.v.to(torch.int16) + zero).to(torch.uint8), self.code.bits)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.code.group is None and self.resident == "int8":
            return super()._product(x, bias)
        coded, step = self.source(x), max(1, PANEL // self.source.padded)
        if self.code.group is None:
            scale = self.row_scale.view(torch.bfloat16)
            return product(coded, self._rows, step, scale, bias, x.dtype, self.shift())
        values = coded.dequantized()
        starts = range(0, self.out_features, step)
        y = torch.cat([F.linear(values, self._values(start, start + step)) for start in starts], dim=1)
        return y if bias is None else y + bias

    def _rows(self, start: int, stop: int) -> Tensor:
        v: Any = self._buffers.get("v")
        if v is not None:
            return v[start:stop]
        zeros = None if self.code.symmetric else self.zeros[start:stop]
        return self.code.decode(self.words[start:stop], zeros, self.source.padded)

    def _values(self, start: int, stop: int) -> Tensor:
        """Rows of the rotated weight (rows, padded) float32."""
        scale = row_scale_of(self.row_scale[start:stop])
        spread = scale[:, None] if self.code.group is None else self.code.spread(scale, self.source.padded)
        return self._rows(start, stop).float() * spread

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """Wᵀ ∂y with the dequantized W: (tokens, out_features) to (tokens, in_features), in its dtype."""
        rotated = gradient @ self._values(0, self.out_features).to(gradient.dtype)
        return self.source.unrotate(rotated.float()).to(gradient.dtype)

    def dequantized(self) -> Tensor:
        """The weight (out_features, in_features) float32 in the original basis."""
        return self.source.unrotate(self._values(0, self.out_features))

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, {self.code}" + (", int8" if self.resident == "int8" else "")
