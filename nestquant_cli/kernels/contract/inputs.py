"""Operations on tokens: rotation, rounding, and whether a tensor was changed."""

from typing import Protocol

from torch import Tensor

from ...e8.code import NestedCode
from ...rotation.seeds import Seed


class InputKernels(Protocol):
    """Tokens on their way into a quantized Linear."""

    def rotates(self, order: int, seed: int) -> bool:
        """Whether tokens are rotated in one pass over memory, in which bfloat16 stays bfloat16.

        Args:
            order: order of the rotation.
            seed: seed of the rotation signs.

        Returns:
            True where `rotate_tokens` and `rotated_product` have such a pass for the order.
        """
        ...

    def rotate_tokens(self, x: Tensor, order: int, seed: Seed | None) -> Tensor:
        """R x of tokens padded with zeros to the order, R as `rotation.transform` defines it.

        Args:
            x: (tokens, features ≤ order) float32, bfloat16 or float16.
            order: order of the rotation.
            seed: seed of the rotation signs, with factors beside them if there are any; None does not rotate.

        Returns:
            (tokens, order) float32. A kernel that rotates in one pass gives bfloat16 for bfloat16.
        """
        ...

    def encode_tokens(
        self, x: Tensor, order: int, seed: Seed | None, code: NestedCode, unit: float, center: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rotates tokens as `rotate_tokens` and rounds each to the code, at `unit` times its root mean square.

        Args:
            x, order, seed: as in `rotate_tokens`.
            code: the nested code.
            unit: size of v = 1 for a token with root mean square 1.
            center: (order,) float32, subtracted from those rotated tokens that it makes smaller.

        Returns:
            v (tokens, order) int8 or int16, the size of v = 1 (tokens,) float32, which is 1 for a token of zeros, and
            whether the center was subtracted (tokens,) bool, None without a center.
        """
        ...

    def to_integers(self, x: Tensor, order: int, seed: Seed | None, bits: int, clip: float) -> tuple[Tensor, Tensor]:
        """Rotates tokens as `rotate_tokens`, in float32, and rounds each to multiples of a scale of its own.

        Args:
            x, order, seed: as in `rotate_tokens`.
            bits: bits of an integer, 2 to 8.
            clip: reach of the grid as a fraction of the token's largest magnitude, in (0, 1].

        Returns:
            v (tokens, order) int8 from −2^(bits−1) to 2^(bits−1) − 1, and the scale (tokens,) float32: the largest
            magnitude · clip / (2^(bits−1) − 1), rounded to bfloat16; 1 for a token of zeros, not a number for one that
            is not finite.
        """
        ...

    def to_grid(self, x: Tensor, order: int, seed: int) -> tuple[Tensor, Tensor]:
        """Rotates tokens as `rotate_tokens` and rounds each to int8 multiples of 2^exponent, a step of its own.

        Args:
            x, order, seed: as in `rotate_tokens`.

        Returns:
            v (tokens, order) int8 and exponent (tokens,) int8: the least even one for which no entry is beyond ±127,
            EMPTY for a token of zeros, INFINITE for one that is not finite.
        """
        ...

    def to_int16(self, x: Tensor, order: int, seed: Seed | None) -> tuple[Tensor, Tensor]:
        """Rotates tokens as `rotate_tokens`, in float32, and rounds each to multiples of a scale of its own.

        With entries of the size of a Gaussian's, the error is some 40 times below that of rounding to bfloat16.

        Args:
            x, order, seed: as in `rotate_tokens`; at most MOST_ENTRIES features.

        Returns:
            the integers, at most LARGEST_INT16 in magnitude, in an order that only the device's `int16_product` knows,
            and the scale (tokens,) float32: the largest magnitude / LARGEST_INT16; 0 for a token without an entry of at
            least LEAST_SIZE, not a number for one that is not finite.
        """
        ...

    def fingerprint(self, x: Tensor) -> Tensor | int:
        """What differs after x was changed in place.

        Args:
            x: a tensor of any shape and dtype.

        Returns:
            64 bits that depend on all of the contents; a copy of x where they cannot be had faster than one.
        """
        ...
