"""The codec "nestquant": nested E8 lattice codes, of weights and of vectors (arXiv 2502.09720)."""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...base.fields import Fields
from ...e8.code import BLOCK, MOST_MULTIPLIERS, NestedCode
from ...e8.shape import CodeShape, shape_for_bits, shape_for_q
from ...kernels import for_device
from ...modules.linear import QuantizedLinear
from ...quantization.factors import Feedback
from ..protocol import INTEGERS, Checked, Grid, NoGridError, VectorCodec
from ..row_scale import row_scale_of
from ..vectors import VectorCode
from ..weights import RoundedRows
from .centered import centered_from, fit_centered
from .check import check, check_record
from .code import ScaledCode
from .fit import fit_rows
from .linear import NestedLinear
from .rounding import quantize_rows, round_rows, rounded_rows
from .row_search import search_rows

_LARGEST_UNIT = 1 << 16  # of an entry in units of its row's root mean square; real ones are below 1


class NestedCodec(VectorCodec[CodeShape, NestedCode]):
    """Settings of a recipe: q and k, both or none; without them the (q, k) of least error for the bits.

    The search takes eight paths where a recipe does not say. At 2 to 4 bits they lower the errors of outputs by 0.24 to
    0.72 dB against LDLQ, on SmolLM2-135M; 32 paths at 2 bits by 0.51 to 1.02 dB. Where inputs are rounded, their noise
    hides the gain, and without feedback there is nothing to search: both take one path.
    """

    name: ClassVar[str] = CodeShape.codec
    settings: ClassVar[tuple[str, ...]] = ("q", "k")
    remedy: ClassVar[str] = "2 to 8 bits in steps of 0.125"
    columns: ClassVar[int | None] = BLOCK
    paths: ClassVar[int] = 8
    format_version: ClassVar[int] = 1
    tensor_kinds: ClassVar[Mapping[str, str]] = {"words": "words", "row_scale": "row scales"}
    mixed_rates: ClassVar[bool] = True
    two_sided: ClassVar[bool] = True
    tunable: ClassVar[bool] = True

    def shape(self, bits: float, settings: Any, place: str) -> CodeShape:
        if settings is None:
            return shape_for_bits(bits)
        if (
            not isinstance(settings, dict)
            or set(settings) != set(self.settings)
            or any(type(value) is not int for value in settings.values())
        ):
            raise ValueError(f"{place} {settings} is not of the form {{q: 14, k: 4}}")
        if not 2 <= settings["q"] <= 256 or not 1 <= settings["k"] <= MOST_MULTIPLIERS:
            raise ValueError(f"q and k of {place} are {settings}, not 2 to 256 and 1 to {MOST_MULTIPLIERS}")
        return shape_for_q(settings["q"], settings["k"])

    def shape_from(self, fields: Fields) -> CodeShape:
        if fields.value.get("codec", self.name) != self.name:
            raise ValueError(f"{fields.place} is none of the nested ones")
        numbers = fields.integer("q", 2, 256), fields.integer("k", 1, 255), fields.integer("word_bits", 8, 64)
        return CodeShape(*numbers, fields.integer("limit", 1, 32767))

    def shape_of(self, code: NestedCode) -> CodeShape:
        return CodeShape(code.q, max(code.k, code.room), code.word_bits, code.limit)

    def shape_key(self, shape: CodeShape) -> Any:
        return [shape.q, shape.k]

    def quantize(self, step: Feedback, rows: list[int], shape: CodeShape, seed: int, paths: int) -> RoundedRows:
        return quantize_rows(step, rows, shape, seed, paths)

    def fit_plain(self, rows: Tensor, shape: CodeShape, seed: int) -> ScaledCode:
        return fit_rows(rows, shape, seed)

    def round_plain(self, rows: Tensor, fitted: ScaledCode) -> RoundedRows:
        return rounded_rows(fitted, [len(rows)], *round_rows(rows, [len(rows)], None, fitted))

    def trial(self, rows: Tensor, shape: CodeShape, paths: int) -> Callable[[], object]:
        scaled, n = fit_rows(rows[:64], shape, 0), rows.shape[1]
        if paths == 1:
            return lambda: scaled.round(rows)
        eye = torch.eye(n, device=rows.device)
        step = Feedback(rows, eye, eye[:BLOCK, :BLOCK].expand(n // BLOCK, BLOCK, BLOCK), 0.0)
        return lambda: search_rows(rows, [len(rows)], step, scaled, paths)

    def decode(self, code: NestedCode, tensors: Mapping[str, Tensor], entries: int) -> Tensor:
        return self.integers(code, tensors, entries).float() * row_scale_of(tensors["row_scale"])[:, None]

    def code_to_dict(self, code: NestedCode, shape: CodeShape) -> dict[str, Any]:
        of_matrix = self.shape_of(code)
        other = {} if of_matrix == shape else {"code": of_matrix.to_dict()}
        return {"multipliers": list(code.multipliers), **other}

    def code_from(self, fields: Fields, shape: CodeShape, entries: int) -> NestedCode:
        other = fields.optional("code", lambda value: self.shape_from(Fields(value, "code")))
        return _with_multipliers(fields, other or shape)

    def check(self, code: NestedCode, stored: Mapping[str, NDArray[Any]], entries: int) -> Checked:
        return check(code, stored, entries)

    def check_record(self, code: NestedCode, record: Mapping[str, Any], checked: Checked) -> str | None:
        return check_record(code, record, checked)

    def describe(self, code: NestedCode) -> str:
        return f"q {code.q}, {code.word_bits}-bit words"

    def summary(self, code: NestedCode) -> dict[str, Any]:
        return self.shape_of(code).to_dict() | {"multipliers": list(code.multipliers)}

    def entropy_bits(self, code: NestedCode, record: Mapping[str, Any]) -> float | None:
        counts = [int(count) for count in record["beta_histogram"]]
        total = sum(counts)
        return total * BLOCK * math.log2(code.q) - sum(n * math.log2(n / total) for n in counts if n > 0)

    def grid(self, code: NestedCode, columns: int, name: str) -> Grid:
        if not code.int8:
            raise NoGridError(f"{name} has entries beyond int8", INTEGERS)
        return Grid(8, None)

    def integers(self, code: NestedCode, tensors: Mapping[str, Tensor], entries: int) -> Tensor:
        return for_device(tensors["words"].device).unpack(tensors["words"], entries, code)

    @property
    def linear(self) -> type[QuantizedLinear]:
        return NestedLinear

    # Vectors.

    def fit(self, rows: Tensor, shape: CodeShape, seed: int) -> ScaledCode:
        return fit_rows(rows, shape, seed)

    def fit_heads(self, vectors: Tensor, shape: CodeShape, seed: int, centering: bool) -> VectorCode:
        return fit_centered(vectors, shape, seed) if centering else super().fit_heads(vectors, shape, seed, centering)

    def vector_from(self, fields: Fields, shape: CodeShape) -> VectorCode:
        unit: Any = fields.value.get("unit")
        if type(unit) not in (float, int) or not 0 < unit <= _LARGEST_UNIT:  # no overflow, and NaN fails it
            raise ValueError(f"{fields.place}.unit must be a number above 0 and at most {_LARGEST_UNIT}")
        scaled = ScaledCode(_with_multipliers(fields, shape), float(unit))
        return centered_from(scaled, fields.value["centers"]) if "centers" in fields.value else scaled


def _with_multipliers(fields: Fields, shape: CodeShape) -> NestedCode:
    items = fields.sequence("multipliers")
    if not 1 <= len(items) <= shape.k or any(type(m) is not int or not 1 <= m <= 32767 for m in items):
        raise ValueError(f"{fields.place}.multipliers must be 1 to {shape.k} positive integers")
    return shape.with_multipliers(tuple(items))
