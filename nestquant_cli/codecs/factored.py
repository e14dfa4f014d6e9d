"""A code of keys with factors of their channels: the vectors of a head are multiplied, coded, and divided again.

Behind a rotation the error of a key is white and in proportion to its energy. What it does to a score is not white:
queries are larger in some channels than in others. `calibration.key_scales` says which factors cost least.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..e8.vectors import centers_of_rows
from ..rotation.seeds import ScaledSeed, factors_of, text_of
from .vectors import AttentionForm, Rounded, VectorCode


@dataclass(frozen=True)
class FactoredCode(VectorCode):
    """A code of multiplied head vectors. Its packed vectors are those of `code`; reading divides what they stand for.

    Attributes:
        code: code of the multiplied vectors.
        factors: a text of bytes for each head, a byte for each channel, as `rotation.seeds.ScaledSeed` has them.
    """

    code: VectorCode
    factors: tuple[bytes, ...]

    @property
    def int8(self) -> bool:
        """Whether every rounded integer fits int8."""
        return self.code.int8

    def fitted(self) -> dict[str, Any]:
        """What `code` has, and the factors, for config.json."""
        return self.code.fitted() | {"factors": [text_of(each) for each in self.factors]}

    def vector_bytes(self, entries: int) -> int:
        """Bytes of one packed vector."""
        return self.code.vector_bytes(entries)

    def round(self, x: Tensor) -> Rounded:
        """The nearest vectors of `code` to x (rows, entries) float32, multiplied and rotated already."""
        return self.code.round(x)

    def pack(self, x: Tensor) -> Tensor:
        """Packed vectors (rows, bytes) uint8 of x (rows, entries) float32, multiplied and rotated already."""
        return self.code.pack(x)

    def unpack(self, packed: Tensor, entries: int) -> Rounded:
        """What packed vectors (rows, bytes) uint8 stand for: rotated vectors that are still multiplied."""
        return self.code.unpack(packed, entries)

    def encode_heads(self, x: Tensor, seed: int | None, run: int, restore: bool) -> tuple[Tensor, Tensor | None]:
        """Multiplies, rotates and packs head vectors (rows, head size)."""
        up, down = (centers_of_rows(table, len(x), run) for table in tables(self.factors, x.device))
        packed, restored = self.code.encode_heads(x.float() * up, seed, run, restore)
        return packed, None if restored is None else restored * down

    def decode_heads(self, packed: Tensor, head_size: int, seed: int | None, run: int) -> Tensor:
        """Packed vectors (rows, bytes) to (rows, head size) float32 in the basis of the heads, divided again."""
        down = centers_of_rows(tables(self.factors, packed.device)[1], len(packed), run)
        return self.code.decode_heads(packed, head_size, seed, run) * down

    def attention_form(self, head_size: int, seed: int | None, device: torch.device) -> AttentionForm | None:
        """That of `code`, with what queries are multiplied by: q·(k/f) = (q/f)·k."""
        form = self.code.attention_form(head_size, seed, device)
        return None if form is None else form._replace(of_queries=tables(self.factors, device)[1])

    def fits(self, heads: int, entries: int) -> bool:
        """Whether there is a factor for each of so many channels of each of so many heads."""
        sizes = {len(each) for each in self.factors}
        return len(self.factors) == heads and sizes == {entries} and self.code.fits(heads, entries)

    def of_heads(self, first: int, stop: int) -> "FactoredCode":
        """The same code with the factors of the heads first … stop."""
        return replace(self, code=self.code.of_heads(first, stop), factors=self.factors[first:stop])


def factored_from(code: VectorCode, texts: Any) -> VectorCode:
    """The inverse of `FactoredCode.fitted`, given the code of the multiplied vectors and the item "factors".

    Args:
        code: code of the multiplied vectors.
        texts: a text for each head; None for none.

    Raises:
        ValueError: these are no factors of heads of one size.
    """
    if texts is None:
        return code
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError("factors of keys must be a list of texts")
    factors = tuple(factors_of(text) for text in texts)
    if len({len(each) for each in factors}) != 1:
        raise ValueError("factors of keys have different sizes")
    return FactoredCode(code, factors)


@lru_cache(maxsize=4096)
def tables(factors: tuple[bytes, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The factors and their reciprocals, (heads, head size) float32 each."""
    with torch.inference_mode(False):
        steps = torch.stack([torch.from_numpy(ScaledSeed(0, each).values()) for each in factors])
        return steps.float().to(device), (1 / steps).float().to(device)
