"""What a code of vectors is: of the tokens of an input, of the heads of keys and values."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Rounded:
    """Rounded vectors: integers v and the float32 size of v = 1 of each row; or the values themselves and None.

    Attributes:
        values: (rows, entries) int8 or int16, or float32 where scale is None.
        scale: (rows,) float32, or None.
        centered: (rows,) bool, the rows that a center is to be added to; None for no row.
        center: (rows, entries) or (1, entries) float32, theirs.
    """

    values: Tensor
    scale: Tensor | None
    centered: Tensor | None = None
    center: Tensor | None = None

    def dequantized(self) -> Tensor:
        """(rows, entries) float32."""
        values = self.values.float() if self.scale is None else self.values.float() * self.scale[:, None]
        if self.centered is None or self.center is None:
            return values
        return values.addcmul_(self.centered[:, None].to(values.dtype), self.center)


class VectorCode(Protocol):
    """Codes vectors as they come: the tokens of an input, the heads of keys and values."""

    def round(self, x: Tensor) -> Rounded:
        """The nearest vectors of the code to x (rows, entries) float32; nothing is stored."""

    def vector_bytes(self, entries: int) -> int:
        """Bytes of one packed vector, its scales included."""

    def pack(self, x: Tensor) -> Tensor:
        """Packed vectors (rows, bytes) uint8 of x (rows, entries) float32."""

    def unpack(self, packed: Tensor, entries: int) -> Rounded:
        """What (rows, bytes) uint8 stand for: a pure function of the bytes."""

    def fitted(self) -> dict[str, Any]:
        """JSON-ready: what was fitted, all that the shape does not say."""
