"""What a codec is. A method is rotation × error feedback × codec: whoever rotates, feeds back errors, packs, caches or
writes files knows codecs by these protocols, and `codecs.registry` finds the codec of a shape.

To add one: a `Codec` with its `Shape`, `VectorCode`, `WeightCode` and `Rounder`, its line in `registry`, and the Linear
that multiplies with its weights in `modules.attach`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from .vectors import VectorCode

TensorForms = dict[str, tuple[tuple[int, ...], torch.dtype]]  # shape and dtype by name


class Shape(Protocol):
    """What a recipe fixes of a code before anything is fitted to data."""

    codec: ClassVar[str]

    @property
    def word_bits(self) -> int:
        """Bits of eight entries, without scales."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, for config.json and for the key of a calibration."""


class WeightCode(Protocol):
    """How a matrix is stored."""

    codec: ClassVar[str]

    @property
    def int8(self) -> bool:
        """Whether every decoded integer fits int8."""

    def tensors(self, rows: int, entries: int) -> TensorForms:
        """The stored tensors of a matrix (rows, entries), by the name that follows that of the Linear."""


@dataclass(frozen=True)
class RoundedRows:
    """A matrix that was rounded.

    Attributes:
        tensors: for each of the matrices that were stacked, what is stored, by name.
        values: (rows, entries) float32, what the stored tensors stand for.
        codes: for each of them, of its weights.
        records: for each of the matrices that were stacked, what the report says of its code.
    """

    tensors: list[dict[str, Tensor]]
    values: Tensor
    codes: Sequence[WeightCode]
    records: list[dict[str, Any]]


def by_matrix(tensors: Mapping[str, Tensor], rows: list[int]) -> list[dict[str, Tensor]]:
    """Tensors of stacked matrices, rows along the first axis, as those of each matrix."""
    parts = {name: tensor.split(rows) for name, tensor in tensors.items()}
    return [{name: part[number].contiguous() for name, part in parts.items()} for number in range(len(rows))]


class Rounder(Protocol):
    """Rounds one target matrix (m, n), last columns first, as `quantization.ldlq` hands them over.

    Attributes:
        columns: how many are rounded at once.
        panel: columns between two calls of `open`; n need not be a multiple, the first panel is the shorter one.
    """

    columns: int
    panel: int | None

    def open(self, target: Tensor, start: int) -> None:
        """Called before the columns start … of a panel are rounded, with their target (m, width) as it is then."""

    def round(self, block: Tensor, number: int) -> Tensor:
        """The rounded values of a target (m, columns), the block `number` of the row."""

    def finish(self) -> RoundedRows:
        """All that was rounded."""


class Codec(Protocol):
    """One codec: from settings to shapes, from shapes and data to codes.

    Attributes:
        name: its name in recipes, and `codec` of its shapes and codes.
        columns: columns that are rounded at once; None where `search` chooses all columns of a row together.
        settings: names of what a recipe may set of a code.
    """

    name: ClassVar[str]
    columns: ClassVar[int | None]
    settings: ClassVar[tuple[str, ...]]

    def shape(self, bits: float, settings: Any, place: str) -> Shape:
        """The shape that a recipe asks for.

        Args:
            bits: bits of an entry.
            settings: the codec's own, a mapping, or None for its defaults.
            place: names the settings in errors.

        Raises:
            ValueError: bits or settings that the codec does not have.
        """

    def shape_from(self, value: dict[str, Any]) -> Shape:
        """The inverse of `Shape.to_dict`; raises ValueError or LookupError where it is none."""

    def fit(self, rows: Tensor, shape: Shape, seed: int) -> VectorCode:
        """The code for rows (n, entries) that come later, fitted to these; any code does for zeros alone."""

    def vector_from(self, fitted: dict[str, Any], shape: Shape) -> VectorCode:
        """The inverse of `VectorCode.fitted`; raises ValueError or LookupError where it is none."""

    def weight_code(self, shape: Shape, multipliers: tuple[int, ...] | None) -> WeightCode:
        """The code of a matrix; a nested one has multipliers, None where only its sizes are asked for."""

    def decoded(self, code: WeightCode, tensors: Mapping[str, Tensor], entries: int) -> Tensor:
        """The stored matrix (rows, entries) float32, in its rotated basis, from what `code.tensors` describes."""

    def rounder(self, target: Tensor, rows: list[int], shape: Shape, seed: int) -> Rounder | None:
        """What rounds a target (m, entries) of stacked matrices with `rows` rows each.

        None for nested codes, for which `quantization.layer` has kernels, and where there is a `search`.
        """

    def search(
        self, target: Tensor, rows: list[int], shape: Shape, seed: int, factor: Tensor | None, paths: int
    ) -> RoundedRows:
        """Rounds a target (m, entries) of stacked matrices, feedback included; called where `columns` is None.

        Args:
            target, rows, shape, seed: as in `rounder`.
            factor: (entries, entries) float32, the Cholesky factor C of H + J = C·Cᵀ; None rounds without feedback.
            paths: number of paths of the search, 1 or more.
        """
