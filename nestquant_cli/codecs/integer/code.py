"""Integers on a uniform grid with one scale for each row or group of entries: what RTN, GPTQ and QuaRot round to.

An entry is s·v with v = c − zero, 0 ≤ c < 2^bits. Groups are counted from the end of a row, since rounding with
feedback begins there; where the group size does not divide the row, the first group is the shorter one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...e8.code import BLOCK, row_bytes
from ...e8.digits import pack_digits, pack_zeros, unpack_digits, unpack_zeros, zero_bytes
from ...e8.vectors import SCALE_BYTES, stored_scales
from ...kernels import for_device
from ...rotation.seeds import Seed
from ..vectors import Rounded, VectorCode
from ..weights import TensorForms

MIN_BITS, MAX_BITS = 2, 8
LARGEST_GROUP = 1 << 20
# Fractions of the largest entry that are tried for a grid. Below the last one nothing is gained, at 2 bits either.
CLIPS = tuple(round(1 - 0.02 * step, 2) for step in range(35))


@dataclass(frozen=True)
class IntegerCode(VectorCode):
    """A uniform grid: shape, code of vectors and code of weights in one, since nothing but the clip is fitted.

    Attributes:
        bits: bits of an entry, 2 to 8.
        symmetric: zero is 2^(bits−1); otherwise each group has its own.
        group: entries that share a scale, a multiple of 8; None for the whole row.
        clip: the grid's reach as a fraction of the largest entry; None takes the one of least squared error: each
            group's own for weights, for tokens and heads one that is fitted on calibration text.

    Raises:
        ValueError: a field is out of range.
    """

    codec: ClassVar[str] = "integer"

    bits: int
    symmetric: bool = True
    group: int | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(f"bits {self.bits!r} of an integer code are not a whole number from 2 to 8")
        if type(self.symmetric) is not bool:
            raise ValueError(f"symmetric is {self.symmetric!r}, not true or false")
        if self.group is not None and (type(self.group) is not int or not 0 < self.group <= LARGEST_GROUP):
            raise ValueError(f"group {self.group!r} is not a number of entries")
        if self.group is not None and self.group % BLOCK:
            raise ValueError(f"group {self.group} is not a multiple of {BLOCK}")
        if self.clip is not None and (type(self.clip) not in (int, float) or not 0 < self.clip <= 1):
            raise ValueError(f"clip {self.clip!r} is not in (0, 1]")

    @property
    def word_bits(self) -> int:
        """Bits of eight entries."""
        return BLOCK * self.bits

    @property
    def int8(self) -> bool:
        """Whether every v fits int8."""
        return self.symmetric or self.bits < MAX_BITS

    @property
    def levels(self) -> int:
        """How many values an entry has."""
        return 1 << self.bits

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        shape = {"bits": self.bits, "symmetric": self.symmetric, "group": self.group, "clip": self.clip}
        return {"codec": self.codec, **shape}

    def fitted(self) -> dict[str, Any]:
        """The clip, for config.json."""
        return {"clip": self.clip}

    @staticmethod
    def from_dict(value: dict[str, Any]) -> "IntegerCode":
        """The inverse of `to_dict`; raises ValueError for what is missing or out of range."""
        return IntegerCode(value.get("bits", 0), value.get("symmetric", 0), value.get("group"), value.get("clip"))

    def groups(self, entries: int) -> list[slice]:
        """The groups of a row in order."""
        size = self.group or entries
        ends = range(entries, 0, -size)
        return [slice(max(0, end - size), end) for end in reversed(ends)]

    # Grids.

    def grid(self, x: Tensor, clip: float | Tensor) -> tuple[Tensor, Tensor]:
        """Scale as it is stored, in bfloat16, and zero of each row's grid.

        Args:
            x: (rows, width) float32, one group of each row.
            clip: fraction of the largest entry, one for all or (rows, 1).

        Returns:
            scale (rows, 1) float32, 1 where it would be 0; zero (rows, 1) float32.
        """
        low, high = x.amin(1, keepdim=True).clamp(max=0) * clip, x.amax(1, keepdim=True).clamp(min=0) * clip
        if self.symmetric:
            scale = torch.maximum(-low, high) / (self.levels // 2 - 1)
        else:
            scale = (high - low) / (self.levels - 1)
        scale = scale.to(torch.bfloat16).float()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        if self.symmetric:
            return scale, torch.full_like(scale, self.levels // 2)
        return scale, (-low / scale).round().clamp(0, self.levels - 1)

    def best_grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`grid` under the given clip, or under each row's own of least squared error."""
        if self.clip is not None:
            return self.grid(x, self.clip)
        best = torch.full((x.shape[0], 1), torch.inf, device=x.device)
        clip = torch.ones_like(best)
        for candidate in CLIPS:
            error = self._error(x, *self.grid(x, candidate))
            clip = torch.where(error < best, candidate, clip)
            best = torch.minimum(error, best)
        return self.grid(x, clip)

    def digits(self, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """c of the grid's nearest points to x (rows, width), float32."""
        return ((x / scale).round() + zero).clamp(0, self.levels - 1)

    def _error(self, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return (x - scale * (self.digits(x, scale, zero) - zero)).square().sum(1, keepdim=True)

    def _coded(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Digits, scale and zero of each group of x (rows, entries)."""
        for part in self.groups(x.shape[1]):
            scale, zero = self.best_grid(x[:, part])
            yield self.digits(x[:, part], scale, zero), scale, zero

    # Vectors.

    def fit(self, rows: Tensor) -> "IntegerCode":
        """The code with the one clip of least squared error on rows (n, entries), unless it has a clip already."""
        if self.clip is not None or not len(rows):
            return self if self.clip is not None else replace(self, clip=1.0)
        errors = {}
        for candidate in CLIPS:
            tried = replace(self, clip=candidate)
            errors[candidate] = float((rows - tried.round(rows).dequantized()).square().sum(dtype=torch.float64))
        return replace(self, clip=min(CLIPS, key=lambda candidate: errors[candidate]))

    def round(self, x: Tensor) -> Rounded:
        """Nearest points of the grids to x (rows, entries): integers where a whole row has one scale, else values."""
        if self.group is None:
            digits, scale, zero = next(self._coded(x))
            return Rounded((digits - zero).to(self.integer), scale[:, 0])
        return Rounded(torch.cat([scale * (digits - zero) for digits, scale, zero in self._coded(x)], dim=1), None)

    def round_tokens(self, x: Tensor, order: int, seed: Seed | None) -> Rounded:
        """Rotates tokens (tokens, features ≤ order) and rounds each, by a kernel where a row is one symmetric grid."""
        if self.clip is None or self.group is not None or not self.symmetric:
            return super().round_tokens(x, order, seed)
        return Rounded(*for_device(x.device).to_integers(x, order, seed, self.bits, self.clip))

    @property
    def integer(self) -> torch.dtype:
        """The dtype of v."""
        return torch.int8 if self.int8 else torch.int16

    def vector_bytes(self, entries: int) -> int:
        """Bytes of a packed vector: digits, then the scales, then the zeros."""
        return row_bytes(entries, self.word_bits) + self._side_bytes(entries)

    def _side_bytes(self, entries: int) -> int:
        count = len(self.groups(entries))
        return count * SCALE_BYTES + (0 if self.symmetric else zero_bytes(count, self.bits))

    def pack(self, x: Tensor) -> Tensor:
        """Packed vectors (rows, bytes) uint8 of x (rows, entries): digits, scales in bfloat16, zeros."""
        coded = list(self._coded(x))
        parts = [pack_digits(torch.cat([digits for digits, _, _ in coded], dim=1).to(torch.uint8), self.bits)]
        parts.append(torch.cat([scale for _, scale, _ in coded], dim=1).to(torch.bfloat16).view(torch.uint8))
        if not self.symmetric:
            parts.append(pack_zeros(torch.cat([zero for _, _, zero in coded], dim=1).to(torch.uint8), self.bits))
        return torch.cat(parts, dim=1)

    def unpack(self, packed: Tensor, entries: int) -> Rounded:
        """What packed vectors (rows, bytes) stand for: integers where a whole row has one scale, else values."""
        width, count = row_bytes(entries, self.word_bits), len(self.groups(entries))
        scale = stored_scales(packed, width, count)
        zeros = None if self.symmetric else packed[:, width + SCALE_BYTES * count :].contiguous()
        v = self.decode(packed[:, :width].contiguous(), zeros, entries)
        if self.group is None:
            return Rounded(v, scale[:, 0])
        return Rounded(v.float() * self.spread(scale, entries), None)

    # Matrices.

    def tensors(self, rows: int, entries: int) -> TensorForms:
        """The stored tensors of a matrix: digits, scales as bits of bfloat16, and zeros unless symmetric."""
        count = len(self.groups(entries))
        forms: TensorForms = {
            "words": ((rows, row_bytes(entries, self.word_bits)), torch.uint8),
            "row_scale": ((rows,) if self.group is None else (rows, count), torch.int16),
        }
        if not self.symmetric:
            forms["zeros"] = (rows, zero_bytes(count, self.bits)), torch.uint8
        return forms

    def decode(self, words: Tensor, zeros: Tensor | None, entries: int) -> Tensor:
        """v (rows, entries) int8 or int16 of stored digits (rows, bytes) and zeros (rows, bytes)."""
        digits = unpack_digits(words, entries, self.bits).to(torch.int16)
        if zeros is None:
            return (digits - self.levels // 2).to(self.integer)
        zero = unpack_zeros(zeros, len(self.groups(entries)), self.bits).to(torch.int16)
        return (digits - self.spread(zero, entries)).to(self.integer)

    def spread(self, of_groups: Tensor, entries: int) -> Tensor:
        """(rows, groups) to (rows, entries): each group's value for all its entries."""
        counts = torch.tensor([part.stop - part.start for part in self.groups(entries)], device=of_groups.device)
        return of_groups.repeat_interleave(counts, dim=1)
