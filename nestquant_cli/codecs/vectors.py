"""What a code of vectors is: of the tokens of an input, of the heads of keys and values."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..e8.code import NestedCode
from ..rotation.integers import unrotate_integers
from ..rotation.parted import parted_rotation
from ..rotation.seeds import ScaledSeed, Seed
from ..rotation.transform import rotation


@dataclass(frozen=True)
class Rounded:
    """Rounded vectors: integers v and the float32 size of v = 1 of each row; or the values themselves and None.

    Attributes:
        values: (rows, entries) int8 or int16, or float32 where scale is None.
        scale: (rows,) float32, or None; (rows, parts) where each of the equal parts of a row was rounded by itself.
        centered: bool, of the shape of scale: what a center is to be added to; None for no row.
        center: float32 that broadcasts to (rows, entries), the center of each row.
    """

    values: Tensor
    scale: Tensor | None
    centered: Tensor | None = None
    center: Tensor | None = None

    def rows(self, which: Tensor | slice) -> "Rounded":
        """Some of the rows; the center is that of an input, the same for each row."""
        scale, centered = (None if each is None else each[which] for each in (self.scale, self.centered))
        return Rounded(self.values[which], scale, centered, self.center)

    def dequantized(self) -> Tensor:
        """(rows, entries) float32."""
        if self.scale is not None and self.scale.dim() == 2:
            return self._dequantized_parts(self.scale)
        values = self.values.float() if self.scale is None else self.values.float() * self.scale[:, None]
        if self.centered is None or self.center is None:
            return values
        return values.addcmul_(self.centered[:, None].to(values.dtype), self.center)

    def _dequantized_parts(self, scale: Tensor) -> Tensor:
        values = self.values.float().unflatten(1, (scale.shape[1], -1)) * scale[..., None]
        if self.centered is not None and self.center is not None:
            values.addcmul_(self.centered[..., None].to(values.dtype), self.center.view(scale.shape[1], -1))
        return values.flatten(1)


class AttentionForm(NamedTuple):
    """What the kernel that attends to packed keys and values has to know of their code.

    Attributes:
        code: the nested code of the words.
        centers: (heads, head size) float32 in the basis of the heads; None where no center was subtracted.
        of_queries: (heads, head size) float32 that queries are multiplied by; None where they stay what they are.
    """

    code: NestedCode
    centers: Tensor | None
    of_queries: Tensor | None = None

    def queries(self, query: Tensor) -> Tensor:
        """Queries (..., heads, queries, head size) as the kernel takes them."""
        return query if self.of_queries is None else query.float() * self.of_queries[:, None]


class VectorCode(ABC):
    """A code of vectors as they come: of the tokens of an input, of the heads of keys and values.

    A codec writes the abstract methods, which work in the rotated basis. The others begin or end in the original basis.
    Here they rotate first and round then; a code whose kernels do both in one pass over memory overrides them. Packed
    vectors are read by a pure function of their bytes.

    Attributes:
        centered: whether vectors may have had a center subtracted (`codecs.nested.centered`).
    """

    centered: ClassVar[bool] = False

    @property
    @abstractmethod
    def int8(self) -> bool:
        """Whether every rounded integer fits int8."""

    @abstractmethod
    def round(self, x: Tensor) -> Rounded:
        """The nearest vectors of the code to x (rows, entries) float32; nothing is stored."""

    @abstractmethod
    def vector_bytes(self, entries: int) -> int:
        """Bytes of one packed vector, its scales included."""

    @abstractmethod
    def pack(self, x: Tensor) -> Tensor:
        """Packed vectors (rows, bytes) uint8 of x (rows, entries) float32."""

    @abstractmethod
    def unpack(self, packed: Tensor, entries: int) -> Rounded:
        """What packed vectors (rows, bytes) uint8 stand for."""

    @abstractmethod
    def fitted(self) -> dict[str, Any]:
        """JSON-ready: what was fitted, all that the shape does not say."""

    def round_tokens(self, x: Tensor, order: int, seed: Seed | None) -> Rounded:
        """Rotates tokens and rounds each; nothing is stored.

        Args:
            x: (tokens, features ≤ order) float32, bfloat16 or float16; padded with zeros to the order.
            order: order of the rotation, a multiple of 8.
            seed: seed of the rotation signs, with factors beside them if there are any; None does not rotate.

        Returns:
            (tokens, order) in the rotated basis.
        """
        return self.round(rotation(order, seed).apply(F.pad(x, (0, order - x.shape[1]))))

    def round_parts(self, x: Tensor, seed: Seed | None, parts: int) -> Rounded:
        """Rotates and rounds each of the equal parts of tokens by itself, with a scale of its own.

        So a process that holds some parts of every token needs nothing of the others.

        Args:
            x: (tokens, features) float32, bfloat16 or float16; a part is a multiple of 8.
            seed: as in `round_tokens`.
            parts: number of parts.

        Returns:
            (tokens, features) in the rotated basis.
        """
        width = x.shape[1] // parts
        if isinstance(seed, ScaledSeed):
            x, seed = parted_rotation(x.shape[1], seed, parts).apply(x), None
        rounded = self.round_tokens(x.reshape(-1, width), width, seed)
        scale = None if rounded.scale is None else rounded.scale.view(-1, parts)
        return Rounded(rounded.values.view(-1, parts * width), scale)

    def encode_heads(self, x: Tensor, seed: int | None, run: int, restore: bool) -> tuple[Tensor, Tensor | None]:
        """Rotates and packs head vectors.

        Args:
            x: (rows, head size) floating point, head size a multiple of 8.
            seed: seed of the rotation signs; None does not rotate.
            run: vectors of a head that follow each other; row i belongs to head (i div run) mod heads.
            restore: whether to return what the vectors decode to.

        Returns:
            (rows, bytes) uint8, and (rows, head size) float32 as `decode_heads` gives them, or None.
        """
        packed = self.pack(rotation(x.shape[1], seed).apply(x))
        return packed, self.decode_heads(packed, x.shape[1], seed, run) if restore else None

    def decode_heads(self, packed: Tensor, head_size: int, seed: int | None, run: int) -> Tensor:
        """Packed vectors (rows, bytes) to (rows, head size) float32 in the basis of the heads.

        Args:
            packed: (rows, bytes) uint8 of `encode_heads`.
            head_size: entries of a vector.
            seed, run: as in `encode_heads`.
        """
        rounded = self.unpack(packed, head_size)
        if rounded.scale is None:
            return rotation(head_size, seed).inverse(rounded.values)
        return unrotate_integers(rounded.values, rounded.scale, seed)

    def attention_form(self, head_size: int, seed: int | None, device: torch.device) -> AttentionForm | None:
        """What a kernel needs to attend to packed vectors of this code, or None: they are decoded first."""
        return None

    def part(self, start: int, count: int) -> "VectorCode":
        """The code of some parts of an input next to each other, from part `start` on."""
        return self

    def centers(self, entries: int, device: torch.device) -> Rounded | None:
        """The centers in the rotated basis, a row for each head, or for each part of an input; None without any."""
        return None

    def fits(self, heads: int, entries: int) -> bool:
        """Whether the centers, if there are any, are of so many heads, or parts of an input, with so many entries."""
        return True

    def of_heads(self, first: int, stop: int) -> "VectorCode":
        """The code of some of the heads, first … stop."""
        return self
