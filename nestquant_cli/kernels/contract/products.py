"""Operations that multiply quantized weights."""

from typing import Protocol

import torch
from torch import Tensor

from ...e8.code import NestedCode
from ...rotation.seeds import Seed


class ProductKernels(Protocol):
    """Products of tokens with packed words or with int8 rows."""

    def integer_product(self, a: Tensor, b: Tensor) -> Tensor:
        """a·bᵀ of int8 matrices, exact.

        Args:
            a: (m, k) int8.
            b: (n, k) int8. On a GPU k must be a multiple of 8.

        Returns:
            (m, n) int32.
        """
        ...

    def scale_sums(
        self,
        sums: Tensor,
        token_scale: Tensor,
        row_scale: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        centered: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """(sums · token_scale + centered · shift) · row_scale + bias, what follows an integer product.

        Args:
            sums: (tokens, rows) int32.
            token_scale: (tokens,) float32.
            row_scale, bias, shift: (rows,) float32; the last two may be None.
            dtype: dtype of the result.
            centered: (tokens,) bool; needed with a shift.

        Returns:
            (tokens, rows) of dtype.
        """
        ...

    def rotated_product(self, x: Tensor, seed: Seed, v: Tensor, row_scale: Tensor, parts: int = 1) -> Tensor:
        """diag(row_scale)·V·R x of a few tokens and int8 rows, rotation included.

        Made for at most `limits.joined_tokens` tokens, or `limits.rounded_tokens` of bfloat16. Only for orders of a
        part of which `rotates` says yes.

        Args:
            x: (tokens, features) floating point.
            seed: seed of the rotation signs, with factors beside them if there are any.
            v: (rows, padded features) int8, contiguous.
            row_scale: (rows,) int16, the bits of a bfloat16.
            parts: number of equal parts of a token that are rotated each by itself.

        Returns:
            (tokens, rows) in x's dtype, sums in float32; or, where `limits.rounded_tokens` is not 0, of bfloat16 what
            `int16_product` gives, to the bit, for any number of tokens together.
        """
        ...

    def integer_rows(
        self,
        tokens: Tensor,
        token_scale: Tensor,
        v: Tensor,
        row_scale: Tensor,
        dtype: torch.dtype,
        bias: Tensor | None = None,
        centered: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """`scale_sums` of `integer_product` in one call; to the bit the same.

        Made for at most `limits.integer_rows_tokens` tokens.

        Args:
            tokens: (tokens, entries) int8.
            token_scale: (tokens,) float32.
            v: (rows, entries) int8, contiguous.
            row_scale: (rows,) int16, contiguous, the bits of a bfloat16.
            dtype: dtype of the result.
            bias, centered, shift: as in `scale_sums`.

        Returns:
            (tokens, rows) of dtype.
        """
        ...

    def int16_product(self, tokens: Tensor, scale: Tensor, v: Tensor, row_scale: Tensor, dtype: torch.dtype) -> Tensor:
        """diag(row_scale)·V X of int8 rows and tokens as integers of 16 bits, by exact sums.

        A token is 256·high + low with two int8 digits. (256·Σ v·high + Σ v·low) · scale · row_scale is taken in that
        order, in float32: equal to the bit on every device.

        Args:
            tokens, scale: what `to_int16` gave on this device.
            v: (rows, padded features) int8, contiguous.
            row_scale: (rows,) int16, contiguous, the bits of a bfloat16.
            dtype: dtype of the result.

        Returns:
            (tokens, rows) of dtype.
        """
        ...

    def experts_product(
        self, x: Tensor, taken: Tensor, ends: list[int], v: list[Tensor], row_scale: list[Tensor], dtype: torch.dtype
    ) -> Tensor:
        """diag(row_scale)·V x of the tokens of each expert and its int8 rows, for several experts at a time.

        Args:
            x: (tokens, entries) float32, rotated, contiguous.
            taken: (pairs,) int64, for each pair of a token and an expert the token, the pairs expert by expert.
            ends: by expert, the number of its last pair, plus one; at most `limits.joined_tokens` pairs an expert, or
                `limits.int16_pairs` for bfloat16, are what the kernel is made for.
            v: by expert, (rows, entries) int8, contiguous, all of one shape.
            row_scale: by expert, (rows,) int16, contiguous, the bits of a bfloat16.
            dtype: dtype of the result.

        Returns:
            (pairs, rows) of dtype, sums in float32; for bfloat16 a kernel may round tokens as `to_int16` does.
        """
        ...

    def experts_sum(self, parts: list[Tensor], order: Tensor, weights: Tensor) -> Tensor:
        """Σ weight·output over the experts of each token, added up in float32.

        Args:
            parts: outputs (pairs of the expert, size) of experts, of one dtype; their rows one after another are pairs
                of a token and an expert.
            order: (pairs,) int64, places of the pairs in the router's choice (tokens·k,); other places give nothing.
            weights: (tokens, k) floating point, what the router gives each pair.

        Returns:
            (tokens, size) in the dtype of the outputs.
        """
        ...

    def product(self, words: Tensor, row_scale: Tensor, v_a: Tensor, scale_a: Tensor, code: NestedCode) -> Tensor:
        """Product of packed words with integer activations: exact int32 sums, then the scales.

        Args:
            words: (rows, row bytes) uint8, of any size; entries beyond the limit, which no encoder writes, wrap as
                they do in `unpack`.
            row_scale: (rows,) floating point, the size of v = 1 in each row of the weight.
            v_a: (tokens, entries) int8.
            scale_a: (tokens,) float32.
            code: code of the weight, an int8 one.

        Returns:
            (tokens, rows) float32: sums·scale_a·row_scale.

        Raises:
            ValueError: the shapes do not fit together, or either side is not int8.
        """
        ...

    def product_one(self, words: Tensor, row_scale: Tensor, x: Tensor, code: NestedCode) -> Tensor:
        """Product of packed words of any code with at most `limits.dot_tokens` tokens that are not coded.

        Args:
            words: (rows, row bytes) uint8; entries beyond the limit do not wrap.
            row_scale: (rows,) floating point.
            x: (tokens, entries) floating point, rotated.
            code: code of the weight.

        Returns:
            (tokens, rows) float32. The sums are taken in an order that depends on the shapes alone.

        Raises:
            ValueError: the shapes do not fit together, or there are more tokens.
        """
        ...

    def product_many(self, words: Tensor, row_scale: Tensor, x: Tensor, code: NestedCode) -> Tensor:
        """Product of packed words of an int8 code with bfloat16 or float16 tokens, sums in float32.

        Args:
            words: (rows, row bytes) uint8; entries beyond the limit need not wrap.
            row_scale: (rows,) floating point.
            x: (tokens, entries) bfloat16 or float16, rotated.
            code: code of the weight.

        Returns:
            (tokens, rows) float32.

        Raises:
            ValueError: the shapes do not fit together, or the types are others.
        """
        ...
