"""What a codec is. A method is rotation × error feedback × codec, and what the package knows of a codec it asks here.

A codec of weights is a `Codec`; one that also codes the inputs of Linears, keys and values is a `VectorCodec`. It lives
in a folder of its own: the shape and the code of a matrix, rounding with feedback, checks of what is stored, and the
Linear that multiplies. One line in `codecs.registry` adds it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from numpy.typing import NDArray
from torch import Tensor

from ..base.fields import Fields
from ..quantization.factors import Feedback
from .vectors import VectorCode
from .weights import RoundedRows, Shape, WeightCode

if TYPE_CHECKING:
    from ..modules.linear import QuantizedLinear

S = TypeVar("S", bound=Shape)
C = TypeVar("C", bound=WeightCode)


@dataclass(frozen=True)
class Checked:
    """What was found in the stored tensors of a matrix.

    Attributes:
        problems: the first thing wrong by name of a tensor, None where all is well; tensors that cannot be wrong are
            left out.
        histogram: number of words by index of a multiplier; a single number where words have no such index.
    """

    problems: dict[str, str | None]
    histogram: list[int]

    @property
    def words(self) -> int:
        """Number of words."""
        return sum(self.histogram)


@dataclass(frozen=True)
class Grid:
    """Integers that a matrix is made of: an entry is scale·v with −2^(bits−1) ≤ v < 2^(bits−1).

    Attributes:
        bits: bits of an integer, 2 to 8.
        group: entries of a row that share a scale; None for a scale a row.
    """

    bits: int
    group: int | None


class NoGridError(ValueError):
    """A matrix is not made of symmetric int8 integers. `cause` says why, `remedy` how to quantize instead."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause)
        self.cause, self.remedy = cause, remedy


INTEGERS = "quantize with at most 4.25 bits by the method nestquant or integer"  # the remedy for most matrices


class Codec(ABC, Generic[S, C]):
    """A codec of weights: from settings to shapes, from targets to codes and stored tensors, and back.

    Attributes:
        name: its name in recipes, and `codec` of its shapes and codes.
        settings: names of what a recipe may set of a code.
        remedy: bits and settings that it has, for errors, as in "use …".
        columns: columns that are rounded at once, the size of the diagonal blocks of `Feedback.lower`; None where whole
            rows are searched, which takes the Cholesky factor.
        paths: paths K of the search over rows where a recipe does not say; 1 where there is no search.
        plain_paths: the same without feedback, and where inputs are rounded, too.
        format_version: first version of the format that has its shapes.
        tensor_kinds: what people call the stored tensors, by name.
        mixed_rates: whether bits come in steps of 1/8, so that each matrix can have a rate of its own.
        two_sided: whether rounding feeds errors from row to row where `Feedback.across` says so.
        tunable: whether `tune` can move row scales: a matrix is `decode` times `row_scale`, a scale a row. One whose
            groups have scales gives their gradient in `scale_gradient` of its Linear.
    """

    name: ClassVar[str]
    settings: ClassVar[tuple[str, ...]]
    remedy: ClassVar[str]
    columns: ClassVar[int | None]
    paths: ClassVar[int] = 1
    plain_paths: ClassVar[int] = 1
    format_version: ClassVar[int]
    tensor_kinds: ClassVar[Mapping[str, str]]
    mixed_rates: ClassVar[bool] = False
    two_sided: ClassVar[bool] = False
    tunable: ClassVar[bool] = False

    # Shapes.

    @abstractmethod
    def shape(self, bits: float, settings: Any, place: str) -> S:
        """The shape that a recipe asks for.

        Args:
            bits: bits of an entry.
            settings: mapping of the codec's settings, or None for its defaults.
            place: names the settings in errors.

        Raises:
            ValueError: bits or settings that the codec does not have.
        """

    @abstractmethod
    def shape_from(self, fields: Fields) -> S:
        """The inverse of `Shape.to_dict`; raises ValueError where it is none."""

    @abstractmethod
    def shape_of(self, code: C) -> S:
        """The shape that a code of weights was fitted under."""

    def shape_key(self, shape: S) -> Any:
        """JSON-ready: what two calibrations must share of a shape to serve the same quantization."""
        return shape.to_dict()

    # Quantizing.

    @abstractmethod
    def quantize(self, step: Feedback, rows: list[int], shape: S, seed: int, paths: int) -> RoundedRows:
        """Rounds the target of `step` (m, entries), matrices with rows[i] rows each one below the other.

        Args:
            step: target and factorization for `columns`; without `lower` nothing is fed back.
            rows: number of rows of each matrix.
            shape: shape of the code.
            seed: seed of what is sampled for a fit.
            paths: number of paths of the search, 1 or more; a codec without search ignores it.
        """

    def fit_plain(self, rows: Tensor, shape: S, seed: int) -> Any:
        """What `round_plain` rounds to, fitted to rows (n, entries) float32 that stand for all of a matrix."""
        raise NotImplementedError(f"{self.name} has no rows that are rounded by themselves")

    def round_plain(self, rows: Tensor, fitted: Any) -> RoundedRows:
        """Rounds rows (n, entries) float32 of a matrix, each by itself, so that it may come in pieces."""
        raise NotImplementedError(f"{self.name} has no rows that are rounded by themselves")

    def trial(self, rows: Tensor, shape: S, paths: int) -> Callable[[], object]:
        """Work that takes as long as rounding rows (m, entries) float32, without what is done once for a matrix."""
        step = Feedback(rows, None, None, 0.0)
        return lambda: self.quantize(step, [len(rows)], shape, 0, paths)

    @abstractmethod
    def decode(self, code: C, tensors: Mapping[str, Tensor], entries: int) -> Tensor:
        """The stored matrix (rows, entries) float32, in its rotated basis, from what `code.tensors` describes."""

    # What is stored.

    @abstractmethod
    def code_to_dict(self, code: C, shape: S) -> dict[str, Any]:
        """JSON-ready: what config.json says of a matrix beyond its sizes, `shape` being that of the layout."""

    @abstractmethod
    def code_from(self, fields: Fields, shape: S, entries: int) -> C:
        """The inverse of `code_to_dict` for rows of `entries`; raises ValueError where it is none."""

    @abstractmethod
    def check(self, code: C, stored: Mapping[str, NDArray[Any]], entries: int) -> Checked:
        """Looks for what no encoder writes.

        Args:
            code: code of the matrix.
            stored: the stored tensors as arrays, uint8 and int16, of the shapes that `code.tensors` says; read-only.
            entries: entries of a row.
        """

    @abstractmethod
    def check_record(self, code: C, record: Mapping[str, Any], checked: Checked) -> str | None:
        """What the report's record of a matrix says of its code that is not so; None where all is well."""

    # For people and other formats.

    @abstractmethod
    def describe(self, code: C) -> str:
        """The code in a few words."""

    def summary(self, code: C) -> dict[str, Any]:
        """JSON-ready: the code as `inspect` reports it; "multipliers", of nested codes, are null for others."""
        return self.shape_of(code).to_dict() | {"multipliers": None}

    def entropy_bits(self, code: C, record: Mapping[str, Any]) -> float | None:
        """Bits of all words of a matrix with entropy-coded indices, from its record; None where words have none."""
        return None

    def grid(self, code: C, columns: int, name: str) -> Grid:
        """The integers of a matrix `name` with so many inputs; raises NoGridError where they are none of int8."""
        raise NoGridError(f"{name} has no integers with a scale a row", INTEGERS)

    def integers(self, code: C, tensors: Mapping[str, Tensor], entries: int) -> Tensor:
        """v (rows, entries) int8 of a stored matrix that has a `grid`; its scales are `row_scale`."""
        raise NoGridError("a matrix has no integers with a scale a row", INTEGERS)

    # Multiplying.

    @property
    @abstractmethod
    def linear(self) -> "type[QuantizedLinear]":
        """The Linear that multiplies with a weight of this codec."""


class VectorCodec(Codec[S, C]):
    """A codec that also codes vectors as they come: the tokens of an input, the heads of keys and values."""

    @abstractmethod
    def fit(self, rows: Tensor, shape: S, seed: int) -> VectorCode:
        """The code for rows (n, entries) that come later, fitted to these; any code does for zeros alone."""

    def fit_heads(self, vectors: Tensor, shape: S, seed: int, centering: bool) -> VectorCode:
        """The code for vectors of several heads, fitted to vectors (heads, n, entries); an input is one head.

        Args:
            vectors: in the rotated basis.
            shape: shape of the code.
            seed: seed of the fit.
            centering: whether the code may have a center for each head, where the codec has any.
        """
        return self.fit(vectors.flatten(0, 1), shape, seed)

    @abstractmethod
    def vector_from(self, fields: Fields, shape: S) -> VectorCode:
        """The inverse of `VectorCode.fitted`; raises ValueError where it is none."""
