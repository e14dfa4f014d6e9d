"""A Linear with a weight of a nested code.

packed: the words, decoded inside the product. int8: the integers v that they stand for, and next to them the index of
each block's multiplier, which is all that v does not say of its word: 8.5 bits a weight.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...e8.code import BLOCK, NestedCode
from ...kernels import for_device
from ...modules.linear import QuantizedLinear
from ...modules.multiply import WeightForm
from .indices import join_indices, multiplier_indices, split_indices


class NestedLinear(QuantizedLinear):
    """Replaces nn.Linear. State: `words`, `row_scale` and `bias`."""

    int8_buffers: ClassVar[tuple[str, ...]] = ("v", "indices")

    code: NestedCode
    indices: Tensor  # of the multipliers, as `indices.join_indices` packs them, in the int8 form

    @classmethod
    def form_of(cls, code: Any, resident: str) -> WeightForm:
        """One scale a row; kernels read the words."""
        return WeightForm(resident if code.int8 else "packed", integers=True, int8=code.int8, nested=True)

    def decode(self, start: int, stop: int) -> Tensor:
        """Rows start … stop of V (rows, padded), int8 or int16."""
        words = self.stored("words")
        return for_device(words.device).unpack(words[start:stop], self.source.padded, self.code)

    def to_int8(self) -> Mapping[str, Tensor] | None:
        """v and the indices; None where words are none that an encoder writes, which these could not give back."""
        v, index = self.decoded(), multiplier_indices(self.words, self.source.padded, self.code)
        if not torch.equal(for_device(v.device).pack(v, index, self.code), self.words):
            return None
        return {"v": v, "indices": join_indices(index, self.code.k)}

    def to_words(self) -> Tensor:
        """The words (out_features, bytes) uint8 of v and the indices."""
        index = split_indices(self.indices, self.source.padded // BLOCK, self.code.k)
        return for_device(self.v.device).pack(self.v, index, self.code)

    def describe_code(self) -> str:
        """q and the multipliers."""
        return f"q={self.code.q}, multipliers={self.code.multipliers}"
