"""The codec "integer": uniform grids with a scale for each row or group of entries, of weights and of vectors."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...base.fields import Fields
from ...modules.linear import QuantizedLinear
from ...quantization.factors import Feedback
from ..protocol import Checked, Grid, NoGridError, VectorCodec
from ..row_scale import row_scale_of
from ..vectors import VectorCode
from ..weights import RoundedRows
from .check import check
from .code import IntegerCode
from .linear import IntegerLinear
from .rounding import IntegerRounder, quantize_rows


class IntegerCodec(VectorCodec[IntegerCode, IntegerCode]):
    """Settings of a recipe: any of symmetric, group, and clip, a number or "mse"."""

    name: ClassVar[str] = IntegerCode.codec
    settings: ClassVar[tuple[str, ...]] = ("symmetric", "group", "clip")
    remedy: ClassVar[str] = "whole bits from 2 to 8 and groups in multiples of 8"
    columns: ClassVar[int | None] = IntegerRounder.columns
    format_version: ClassVar[int] = 2
    tensor_kinds: ClassVar[Mapping[str, str]] = {"words": "words", "row_scale": "row scales", "zeros": "zeros"}
    tunable: ClassVar[bool] = True

    def shape(self, bits: float, settings: Any, place: str) -> IntegerCode:
        if bits != int(bits):
            raise ValueError(f"bits {bits:g} of an integer code are not a whole number")
        if settings is None:
            return IntegerCode(int(bits))
        if not isinstance(settings, dict) or not set(settings) <= set(self.settings):
            raise ValueError(f"{place} {settings} is not of the form {{symmetric: true, group: 64, clip: 0.9}}")
        clip = None if settings.get("clip") == "mse" else settings.get("clip")
        return IntegerCode(int(bits), settings.get("symmetric", True), settings.get("group"), clip)

    def shape_from(self, fields: Fields) -> IntegerCode:
        return IntegerCode.from_dict(fields.value)

    def shape_of(self, code: IntegerCode) -> IntegerCode:
        return code

    def quantize(self, step: Feedback, rows: list[int], shape: IntegerCode, seed: int, paths: int) -> RoundedRows:
        return quantize_rows(step, rows, shape)

    def fit_plain(self, rows: Tensor, shape: IntegerCode, seed: int) -> IntegerCode:
        return shape

    def round_plain(self, rows: Tensor, fitted: IntegerCode) -> RoundedRows:
        return quantize_rows(Feedback(rows, None, None, 0.0), [len(rows)], fitted)

    def trial(self, rows: Tensor, shape: IntegerCode, paths: int) -> Callable[[], object]:
        code = shape.fit(rows[:64])
        return lambda: code.round(rows)

    def decode(self, code: IntegerCode, tensors: Mapping[str, Tensor], entries: int) -> Tensor:
        v, scale = self.integers(code, tensors, entries).float(), row_scale_of(tensors["row_scale"])
        return v * (scale[:, None] if code.group is None else code.spread(scale, entries))

    def code_to_dict(self, code: IntegerCode, shape: IntegerCode) -> dict[str, Any]:
        return {}

    def code_from(self, fields: Fields, shape: IntegerCode, entries: int) -> IntegerCode:
        return shape

    def check(self, code: IntegerCode, stored: Mapping[str, NDArray[Any]], entries: int) -> Checked:
        return check(code, stored, entries)

    def check_record(self, code: IntegerCode, record: Mapping[str, Any], checked: Checked) -> str | None:
        return None if record.get("code") == code.to_dict() else f"records the code {record.get('code')}"

    def describe(self, code: IntegerCode) -> str:
        scales = "rows" if code.group is None else f"groups of {code.group}"
        return f"{code.bits}-bit {'symmetric' if code.symmetric else 'asymmetric'} integers, {scales}"

    def grid(self, code: IntegerCode, columns: int, name: str) -> Grid:
        if not code.symmetric:
            raise NoGridError("its integers have zero points", "quantize with symmetric integers")
        if code.group is not None and columns % code.group:
            raise NoGridError(f"groups of {code.group} do not divide the {columns} inputs of {name}", "use another")
        return Grid(code.bits, code.group)

    def integers(self, code: IntegerCode, tensors: Mapping[str, Tensor], entries: int) -> Tensor:
        return code.decode(tensors["words"], tensors.get("zeros"), entries)

    @property
    def linear(self) -> type[QuantizedLinear]:
        return IntegerLinear

    # Vectors.

    def fit(self, rows: Tensor, shape: IntegerCode, seed: int) -> VectorCode:
        return shape.fit(rows[torch.isfinite(rows).all(1)])

    def vector_from(self, fields: Fields, shape: IntegerCode) -> VectorCode:
        clip = fields.value.get("clip")
        if clip is None:
            raise ValueError("an integer code has no clip")
        return IntegerCode(shape.bits, shape.symmetric, shape.group, clip)
