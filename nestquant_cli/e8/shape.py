"""The fixed part of a nested code, before its multipliers are fitted, and the choice of it for a number of bits."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .code import BLOCK, INT8_LIMIT, INT16_LIMIT, NestedCode, smallest_word, stored_tensors
from .rates import BEST

if TYPE_CHECKING:
    import torch

MIN_BITS, MAX_BITS = 2.0, 8.0


@dataclass(frozen=True)
class CodeShape:
    """A nested code before its multipliers are fitted.

    Attributes:
        q: nesting ratio: q⁸ points under each multiplier.
        k: number of multipliers.
        word_bits: bits of the packed word of one block of 8 entries.
        limit: largest |entry| of a decoded block.
    """

    codec: ClassVar[str] = "nestquant"

    q: int
    k: int
    word_bits: int
    limit: int

    def __post_init__(self) -> None:
        NestedCode(self.q, tuple(range(1, self.k + 1)), self.word_bits, self.limit)  # validates

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"q": self.q, "k": self.k, "word_bits": self.word_bits, "limit": self.limit}

    def with_multipliers(self, multipliers: tuple[int, ...]) -> NestedCode:
        """The code with these multipliers, k or fewer."""
        return NestedCode(self.q, multipliers, self.word_bits, self.limit, self.k)

    def tensors(self, rows: int, entries: int) -> "dict[str, tuple[tuple[int, ...], torch.dtype]]":
        """Shape and dtype of the tensors that a matrix (rows, entries) is stored in, as `NestedCode.tensors`."""
        return stored_tensors(rows, entries, self.word_bits)


def shape_for_bits(bits: float) -> CodeShape:
    """The code with the smallest error on a unit Gaussian among those whose words fit 8·bits bits (`rates.BEST`).

    At 4 bits that is (13, 5). The paper's (14, 4) needs words of 33 bits: W4 went from KL 0.060 to 0.057 with 4.157
    instead of 4.032 real bits a weight, which is no measurable effect for more bits.

    Args:
        bits: bits per entry, 2 to 8 in eighths.

    Raises:
        ValueError: bits out of range or not a multiple of 1/8.
    """
    if not math.isfinite(bits) or not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits {bits:g} are out of range, {MIN_BITS:g} to {MAX_BITS:g}")
    word_bits = bits * BLOCK
    if word_bits != int(word_bits):
        raise ValueError(f"bits {bits:g} are not a multiple of 1/8")
    q, k, limit, _ = BEST[int(word_bits)]
    return CodeShape(q, k, int(word_bits), limit)


def shape_for_q(q: int, k: int, word_bits: int | None = None) -> CodeShape:
    """The code with a chosen (q, k), in the smallest word that holds it unless word_bits is given.

    Raises:
        ValueError: the parameters do not make a code.
    """
    bits = smallest_word(q, k) if word_bits is None else word_bits
    limit = INT8_LIMIT if bits <= MAX_INT8_WORD else INT16_LIMIT
    return CodeShape(q, k, bits, limit)


# Largest word, 4.25 bits an entry, whose decoded entries are limited to int8. Up to there the limit costs little error;
# larger words need int16.
MAX_INT8_WORD = 34
