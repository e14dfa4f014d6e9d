"""A Linear with a weight of grouped lattices: packed in memory, multiplied in float32 panel by panel."""

from torch import Tensor

from ...modules.linear import QuantizedLinear
from ..row_scale import row_scale_of
from .code import LatticeCode


class LatticeLinear(QuantizedLinear):
    """Replaces nn.Linear. State: `words`, `row_scale`, `lattice` and `bias`. There is no int8 form: G·l(z) is real."""

    code: LatticeCode
    lattice: Tensor  # (count, d, d) int16, the bits of float16

    def decode(self, start: int, stop: int) -> Tensor:
        """Rows start … stop in units of the row scales (rows, padded) float32."""
        return self.code.decode(self.stored("words")[start:stop], self.stored("lattice"), self.source.padded)

    def values(self, start: int, stop: int) -> Tensor:
        """Rows start … stop of the weight, rotated: (rows, padded) float32."""
        return self.decode(start, stop).mul_(row_scale_of(self.stored("row_scale")[start:stop])[:, None])
