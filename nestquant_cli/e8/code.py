"""The parameters of a nested lattice code: a union of Voronoi codes of E8 under integer multiples of one scale."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch

BLOCK = 8  # dimension of E8: weights are coded eight at a time
INT8_LIMIT, INT16_LIMIT = 127, 32767  # largest |entry| of a decoded block that fits the type
MOST_MULTIPLIERS = 255  # their index is a byte, with one value to spare


@dataclass(frozen=True)
class NestedCode:
    """Union over i of m_i·(E8 ∩ q·V), V the Voronoi cell of E8 (arXiv 2502.09720, §3 and §4).

    Attributes:
        q: nesting ratio, the side of the codebook: q⁸ points under each multiplier.
        multipliers: m_1 < … < m_k, positive integers; a block decodes to the integer vector v = m_i·u.
        word_bits: bits of the packed word of one block, with k·q⁸ ≤ 2^word_bits.
        limit: a block whose decoded |v| exceeds this is invalid, so that v fits an integer type.
        room: multipliers that a fit was allowed, of which it may take fewer; 0 for as many as there are. It does not
            change what a word stands for, so codes that differ in it are equal.

    Raises:
        ValueError: the parameters do not make a code.

    Example:
        >>> NestedCode(q=13, multipliers=(3, 4, 5, 6, 9), word_bits=32).bits
        4.0
    """

    codec: ClassVar[str] = "nestquant"

    q: int
    multipliers: tuple[int, ...]
    word_bits: int
    limit: int = INT8_LIMIT
    room: int = field(default=0, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.q < 2:
            raise ValueError(f"the nesting ratio q must be at least 2, not {self.q}")
        if not self.multipliers or self.multipliers[0] < 1:
            raise ValueError(f"multipliers must be positive integers, not {self.multipliers}")
        if any(a >= b for a, b in zip(self.multipliers, self.multipliers[1:], strict=False)):
            raise ValueError(f"multipliers must increase, not {self.multipliers}")
        if self.k > MOST_MULTIPLIERS or self.multipliers[-1] > self.limit:
            raise ValueError(f"at most {MOST_MULTIPLIERS} multipliers up to limit {self.limit}, not {self.multipliers}")
        if not 1 <= self.word_bits <= 64:
            raise ValueError(f"a word has 1 to 64 bits, not {self.word_bits}")
        if self.k * self.q**BLOCK > 2**self.word_bits:
            raise ValueError(f"q {self.q} with {self.k} multipliers does not fit a word of {self.word_bits} bits")
        if not 1 <= self.limit <= INT16_LIMIT:
            raise ValueError(f"the limit of a decoded entry lies in 1…{INT16_LIMIT}, not {self.limit}")

    @property
    def k(self) -> int:
        """Number of multipliers."""
        return len(self.multipliers)

    @property
    def bits(self) -> float:
        """Bits per entry of the packed words."""
        return self.word_bits / BLOCK

    @property
    def int8(self) -> bool:
        """Whether every decoded entry fits int8."""
        return self.limit <= INT8_LIMIT

    def tensors(self, rows: int, entries: int) -> "dict[str, tuple[tuple[int, ...], torch.dtype]]":
        """Shape and dtype of the stored tensors of a matrix (rows, entries): words, and bits of bfloat16 scales."""
        return stored_tensors(rows, entries, self.word_bits)


def stored_tensors(rows: int, entries: int, word_bits: int) -> "dict[str, tuple[tuple[int, ...], torch.dtype]]":
    """Shape and dtype of the tensors of a matrix (rows, entries): words of so many bits, and a bfloat16 for each row.

    The row scales are stored as int16 with the bits of bfloat16.
    """
    import torch

    width = row_bytes(entries, word_bits)
    return {"words": ((rows, width), torch.uint8), "row_scale": ((rows,), torch.int16)}


def smallest_word(q: int, k: int) -> int:
    """The smallest word size B with k·q⁸ ≤ 2^B."""
    return max(1, math.ceil(math.log2(k * q**BLOCK) - 1e-12)) if k * q**BLOCK > 1 else 1


def row_bytes(entries: int, word_bits: int) -> int:
    """Bytes of one packed row: its words back to back, the last byte padded with zero bits.

    Args:
        entries: entries of the row, a multiple of 8.
        word_bits: bits of one word.

    Raises:
        ValueError: entries is not a multiple of 8.
    """
    if entries % BLOCK:
        raise ValueError(f"{entries} entries are not whole blocks of {BLOCK}")
    return -(-(entries // BLOCK) * word_bits // 8)
