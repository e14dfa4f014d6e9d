"""A nested code of vectors: NestedCode with the size of its unit, and the kernels that round, pack and read with it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...e8.code import NestedCode, row_bytes
from ...e8.vectors import SCALE_BYTES, row_scale, split_vectors
from ...kernels import for_device
from ...rotation.seeds import Seed
from ..vectors import AttentionForm, Rounded, VectorCode


@dataclass(frozen=True)
class ScaledCode(VectorCode):
    """A nested code with the size of its unit: an entry of a row with root mean square s decodes to s·unit·v.

    A packed vector is its words and then its scale (`e8.vectors`).

    Attributes:
        code: the nested code.
        unit: β₀/2, as lattice vectors are integers in doubled coordinates.
    """

    code: NestedCode
    unit: float

    @property
    def betas(self) -> tuple[float, ...]:
        """β_i, the scales of the ordinary E8 lattice relative to the row's root mean square."""
        return tuple(2 * self.unit * m for m in self.code.multipliers)

    @property
    def int8(self) -> bool:
        """Whether every v fits int8."""
        return self.code.int8

    def row_scale(self, x: Tensor) -> Tensor:
        """Size of v = 1 for each row of x (rows, entries): (rows,) float32; 1 for a row of zeros."""
        return row_scale(x, self.unit)

    def fitted(self) -> dict[str, Any]:
        """The unit and the multipliers, for config.json."""
        return {"unit": self.unit, "multipliers": list(self.code.multipliers)}

    def vector_bytes(self, entries: int) -> int:
        """Bytes of the words and the scale of a vector."""
        return row_bytes(entries, self.code.word_bits) + SCALE_BYTES

    def round(self, x: Tensor) -> Rounded:
        """The nearest vectors of the code to rotated x (rows, entries)."""
        return self.round_tokens(x, x.shape[1], None)

    def round_tokens(self, x: Tensor, order: int, seed: Seed | None, center: Tensor | None = None) -> Rounded:
        """Rotates tokens (tokens, features ≤ order) and rounds each, less a center (order,) where that is smaller."""
        encoded = for_device(x.device).encode_tokens(x, order, seed, self.code, self.unit, center)
        return Rounded(*encoded, center)

    def pack(self, x: Tensor) -> Tensor:
        """Packed vectors (rows, bytes) uint8 of rotated x (rows, entries)."""
        return self.encode_heads(x, None, 1, restore=False)[0]

    def unpack(self, packed: Tensor, entries: int) -> Rounded:
        """v (rows, entries) and the scales of packed vectors (rows, bytes) uint8."""
        words, scale = split_vectors(packed, entries, self.code)
        return Rounded(for_device(packed.device).unpack(words, entries, self.code), scale)

    def encode_heads(
        self, x: Tensor, seed: int | None, run: int, restore: bool, centers: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Rotates and packs head vectors (rows, head size), less centers (heads, head size) where that is smaller."""
        return for_device(x.device).encode_heads(x, self.code, self.unit, seed, restore, centers, run)

    def decode_heads(
        self, packed: Tensor, head_size: int, seed: int | None, run: int, centers: Tensor | None = None
    ) -> Tensor:
        """Packed vectors (rows, bytes) to (rows, head size) float32, with the centers that were subtracted."""
        return for_device(packed.device).decode_heads(packed, head_size, self.code, seed, centers, run)

    def attention_form(self, head_size: int, seed: int | None, device: torch.device) -> AttentionForm | None:
        """The nested code; None without a rotation, which the kernel always takes back."""
        return None if seed is None else AttentionForm(self.code, None)
