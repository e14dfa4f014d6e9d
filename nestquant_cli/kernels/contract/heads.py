"""Operations on the packed cache: head vectors of keys and values to bytes, back, and attention to the bytes."""

from typing import Protocol

from torch import Tensor

from ...e8.code import NestedCode


class HeadKernels(Protocol):
    """Head vectors of keys and values, rotated and packed one by one.

    A packed vector is its words followed by the two bytes of its bfloat16 scale, whose sign says whether the center of
    the vector's head was subtracted.
    """

    def encode_heads(
        self,
        x: Tensor,
        code: NestedCode,
        unit: float,
        seed: int | None,
        restore: bool,
        centers: Tensor | None = None,
        run: int = 1,
    ) -> tuple[Tensor, Tensor | None]:
        """Rotates, codes and packs vectors.

        Args:
            x: (rows, n) floating point, n a multiple of 8.
            code: the nested code.
            unit: size of v = 1 for a vector with root mean square 1.
            seed: seed of the rotation signs; None does not rotate.
            restore: whether to return what the vectors decode to.
            centers: (heads, n) float32, subtracted where that makes a vector smaller.
            run: vectors of a head that follow each other; row i belongs to head (i div run) mod heads.

        Returns:
            (rows, row bytes + 2) uint8, and (rows, n) float32 as `decode_heads` gives them, or None.
        """
        ...

    def decode_heads(
        self, packed: Tensor, size: int, code: NestedCode, seed: int | None, centers: Tensor | None = None, run: int = 1
    ) -> Tensor:
        """Decodes packed vectors and un-rotates them.

        Args:
            packed: (rows, row bytes + 2) uint8.
            size: n, entries of a vector.
            code, seed, centers, run: as the vectors were encoded with.

        Returns:
            (rows, n) float32.
        """
        ...

    def attend(
        self,
        query: Tensor,
        keys: tuple[Tensor, NestedCode],
        values: tuple[Tensor, NestedCode, int],
        seed: int,
        mask: Tensor | None,
        scale: float,
        centers: Tensor | None = None,
        lse: Tensor | None = None,
    ) -> Tensor:
        """softmax(scale·query·keysᵀ + mask)·values of packed keys and values.

        Args:
            query: (batch, key heads, queries, n) floating point, at most `limits.queries` queries.
            keys: packed (batch, key heads, tokens, bytes), any strides but the last, and their code.
            values: the same, and their head size m.
            seed: seed of the rotation signs of both.
            mask: floating point, broadcastable to (batch, key heads, queries, tokens), or None.
            scale: factor of the scores.
            centers: centers of the keys, (key heads, n) float32.
            lse: (batch, key heads, queries) float32, filled with the log of the sum of exp(scores); or None.

        Returns:
            (batch, key heads, queries, m) float32; zeros where the mask leaves nothing, and NaN where a score is NaN.
        """
        ...

    def attend_pages(
        self,
        query: Tensor,
        keys: tuple[Tensor, NestedCode],
        values: tuple[Tensor, NestedCode, int],
        table: Tensor,
        lengths: Tensor,
        seed: int,
        scale: float,
        centers: Tensor | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Attention of the last token of each request to its packed keys and values, which are in pages.

        Args:
            query: (requests, key heads, queries, n) floating point, at most `limits.queries` queries.
            keys: packed (pages, key heads, tokens of a page, bytes) uint8, the tokens of a page and head back to back,
                and their code.
            values: the same, and their head size m.
            table: (requests, pages of the longest) integers, the pages of each request in the order of its tokens.
            lengths: (requests,) integers on the CPU, the tokens of each request, the last one included.
            seed: seed of the rotation signs of both.
            scale: factor of the scores.
            centers: centers of the keys, (key heads, n) float32.
            window: how many of the last tokens are seen; None for all.

        Returns:
            (requests, key heads, queries, m) float32, on the CPU equal to the bit to `attend` on the tokens that a
            request sees; zeros for a request without tokens.
        """
        ...
