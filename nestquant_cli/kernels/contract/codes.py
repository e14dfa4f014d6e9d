"""Operations on nested codes: rounding to codewords, packing them into words and reading words back."""

from typing import Protocol

from torch import Tensor

from ...e8.code import NestedCode


class CodeKernels(Protocol):
    """Nested codes of E8.

    `pack`, `unpack` and `multiplier_indices` are equal to the bit on every device: they are integer arithmetic, and the
    tie rule of `e8.voronoi` leaves nothing to rounding. `quantize` compares errors in float32, so where two multipliers
    are equally good to the last bits, devices may choose differently.
    """

    def quantize(self, x: Tensor, scale: Tensor, code: NestedCode) -> tuple[Tensor, Tensor, int]:
        """Rounds rows to the code: x ≈ scale·v with v = m_i·u, each block under the multiplier of least true error.

        Args:
            x: (rows, entries) floating point, entries a multiple of 8. A block with an entry that is not finite comes
                back as zeros and counts as clipped; who must not continue then looks for such entries.
            scale: (rows,) positive, the size of v = 1.
            code: the nested code.

        Returns:
            v (rows, entries) int8 or int16, index of the multiplier (rows, entries/8) uint8, and the number of blocks
            that no multiplier could hold and that were shrunk towards zero.

        Raises:
            ValueError: the shapes are not these.
        """
        ...

    def pack(self, v: Tensor, index: Tensor, code: NestedCode) -> Tensor:
        """Packs the integers and multiplier indices that `quantize` gave into words.

        Args:
            v: (rows, entries) int8 or int16.
            index: (rows, entries/8) uint8.
            code: the nested code.

        Returns:
            (rows, row_bytes) uint8.
        """
        ...

    def unpack(self, packed: Tensor, entries: int, code: NestedCode) -> Tensor:
        """Decodes rows of packed words to integers.

        Args:
            packed: (rows, row_bytes) uint8, written by `pack`; words that no encoder writes decode to something in
                range.
            entries: entries of a row, a multiple of 8.
            code: the nested code.

        Returns:
            v (rows, entries), int8 or int16.

        Raises:
            ValueError: the rows do not have the bytes of that many entries.
        """
        ...

    def multiplier_indices(self, packed: Tensor, entries: int, code: NestedCode) -> Tensor:
        """Reads the multiplier index of each block from packed words, the part of a word that v does not say.

        Args:
            packed: (rows, row_bytes) uint8.
            entries: entries of a row, a multiple of 8.
            code: the nested code.

        Returns:
            (rows, entries/8) uint8; the largest index for words that no encoder writes.
        """
        ...

    def block_errors(self, x: Tensor, scales: Tensor, multipliers: Tensor, q: int, limit: int) -> Tensor:
        """Squared error of each block under each candidate scale·multiplier, infinite where the block overloads.

        Args:
            x: (blocks, 8) float32.
            scales: (candidates,) float32, the size of v = 1.
            multipliers: (candidates,) integer.
            q: nesting ratio.
            limit: largest |v|.

        Returns:
            (blocks, candidates) float32, summed over the eight entries.
        """
        ...
