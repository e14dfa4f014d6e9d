"""A Linear with a weight of grouped lattices (`codecs.lattice.code`): packed in memory, multiplied panel by panel."""

import torch
from torch import Tensor

from ...kernels.dense import linear
from ...modules.linear import QuantizedLinear
from ...modules.product import PANEL
from ..row_scale import row_scale_of
from .code import LatticeCode


class LatticeLinear(QuantizedLinear):
    """Replaces nn.Linear. State: `words`, `row_scale`, `lattice` and `bias`. There is no int8 form: G·l(z) is real."""

    code: LatticeCode  # type: ignore[assignment] # what the base does with a code, this class does itself
    lattice: Tensor  # (count, d, d) int16, the bits of float16

    def resident_bytes(self) -> int:
        """Bytes of the weight in memory, row scales and lattices included."""
        return self.words.nbytes + self.row_scale.nbytes + self.lattice.nbytes

    def hold_packed(self) -> None:
        """Does nothing: the weight is packed already."""

    def hold_int8(self) -> bool:
        """False: the weight stays packed."""
        return False

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        values, step = self.source(x).dequantized(), max(1, PANEL // self.source.padded)
        dtype = torch.float32 if values.dtype == torch.float16 else values.dtype
        starts = range(0, self.out_features, step)
        parts = [linear(values.to(dtype), self._values(start, start + step).to(dtype)) for start in starts]
        y = torch.cat(parts, dim=1)
        return y if bias is None else y + bias

    def _values(self, start: int, stop: int) -> Tensor:
        """Rows of the rotated weight (rows, padded) float32."""
        points = self.code.decode(self.words[start:stop], self.lattice, self.source.padded)
        return points.mul_(row_scale_of(self.row_scale[start:stop])[:, None])

    def decoded(self) -> Tensor:
        """The weight in units of its row scales (out_features, padded) float32, rotated."""
        return self.code.decode(self.words, self.lattice, self.source.padded)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, {self.code}"
