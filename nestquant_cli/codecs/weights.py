"""What a code of weights is: what a recipe fixes of it, how one matrix is stored, and a matrix that was rounded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

TensorForms = dict[str, tuple[tuple[int, ...], torch.dtype]]  # shape and dtype by name


class Shape(Protocol):
    """What a recipe fixes of a code before anything is fitted to data; it can be hashed and compared."""

    codec: ClassVar[str]

    @property
    def word_bits(self) -> int:
        """Bits of eight entries, without scales."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, for config.json and for the key of a calibration; has "codec", unless it is a nested one."""

    def tensors(self, rows: int, entries: int) -> TensorForms:
        """The stored tensors of a matrix (rows, entries), by the name that follows that of the Linear.

        One is "words" (rows, bytes), the coded entries, and one "row_scale", int16 with the bits of bfloat16. They
        become buffers of the codec's Linear, so they have no name that it has already.
        """


class WeightCode(Protocol):
    """How one matrix is stored: its shape, and what was fitted to it and is not in a tensor."""

    codec: ClassVar[str]

    @property
    def int8(self) -> bool:
        """Whether every decoded integer fits int8."""

    def tensors(self, rows: int, entries: int) -> TensorForms:
        """The stored tensors of a matrix (rows, entries), by the name that follows that of the Linear."""


@dataclass(frozen=True)
class RoundedRows:
    """Matrices that were stacked into one target and rounded.

    Attributes:
        tensors: for each of the matrices, what is stored, by name.
        values: (rows, entries) float32, what the stored tensors stand for, all matrices stacked.
        codes: for each matrix, the code of its weights.
        records: for each matrix, what the report says of its code.
    """

    tensors: list[dict[str, Tensor]]
    values: Tensor
    codes: Sequence[WeightCode]
    records: list[dict[str, Any]]


def by_matrix(tensors: Mapping[str, Tensor], rows: list[int]) -> list[dict[str, Tensor]]:
    """Tensors of stacked matrices, rows along the first axis, as those of each matrix."""
    parts = {name: tensor.split(rows) for name, tensor in tensors.items()}
    return [{name: part[number].contiguous() for name, part in parts.items()} for number in range(len(rows))]
