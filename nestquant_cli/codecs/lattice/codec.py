"""The codec "glvq": grouped lattices with learned generators, searched over whole rows; of weights alone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from numpy.typing import NDArray
from torch import Tensor

from ...base.fields import Fields
from ...modules.linear import QuantizedLinear
from ...quantization.factors import Feedback
from ..protocol import Checked, Codec
from ..row_scale import row_scale_of
from ..weights import RoundedRows
from .check import check
from .code import LatticeCode
from .linear import LatticeLinear
from .rounding import quantize_rows


class LatticeCodec(Codec[LatticeCode, LatticeCode]):
    """Settings of a recipe: any of dimension, group, shared and companding.

    The search takes 16 paths where a recipe does not say; also without feedback, as the coordinates of one vector
    depend on each other through G. On gate and up of SmolLM2-135M's layer 12 at 2 bits, one path (nearest plane) is
    0.3 dB worse than 32, with d = 32.
    """

    name: ClassVar[str] = LatticeCode.codec
    settings: ClassVar[tuple[str, ...]] = ("dimension", "group", "shared", "companding")
    remedy: ClassVar[str] = (
        "2 to 8 bits in steps of 0.125 for weights, groups in multiples of 32, and dimension 8, 16 or 32"
    )
    columns: ClassVar[int | None] = None
    paths: ClassVar[int] = 16
    plain_paths: ClassVar[int] = 16
    format_version: ClassVar[int] = 4
    tensor_kinds: ClassVar[Mapping[str, str]] = {"words": "words", "row_scale": "row scales", "lattice": "lattices"}
    tunable: ClassVar[bool] = True

    def shape(self, bits: float, settings: Any, place: str) -> LatticeCode:
        if settings is None:
            settings = {}
        if not isinstance(settings, dict) or not set(settings) <= set(self.settings):
            raise ValueError(f"{place} {settings} is not of the form {{dimension: 8, group: 128}}")
        return LatticeCode(bits, **settings)

    def shape_from(self, fields: Fields) -> LatticeCode:
        return LatticeCode.from_dict(fields.value)

    def shape_of(self, code: LatticeCode) -> LatticeCode:
        return replace(code, group_bits=None, curves=None)

    def quantize(self, step: Feedback, rows: list[int], shape: LatticeCode, seed: int, paths: int) -> RoundedRows:
        return quantize_rows(step, rows, shape, seed, paths)

    def decode(self, code: LatticeCode, tensors: Mapping[str, Tensor], entries: int) -> Tensor:
        scale = row_scale_of(tensors["row_scale"])
        return code.decode(tensors["words"], tensors["lattice"], entries) * scale[:, None]

    def code_to_dict(self, code: LatticeCode, shape: LatticeCode) -> dict[str, Any]:
        return {"groups": code.fitted()}

    def code_from(self, fields: Fields, shape: LatticeCode, entries: int) -> LatticeCode:
        return shape.with_groups(fields.value.get("groups"), entries)

    def check(self, code: LatticeCode, stored: Mapping[str, NDArray[Any]], entries: int) -> Checked:
        return check(code, stored, entries)

    def check_record(self, code: LatticeCode, record: Mapping[str, Any], checked: Checked) -> str | None:
        wanted = {"code": code.to_dict(), "groups": code.fitted()}
        other = [name for name in wanted if record.get(name) != wanted[name]]
        return f"records the {other[0]} {record.get(other[0])}, not that of config.json" if other else None

    def describe(self, code: LatticeCode) -> str:
        lattices = "one lattice" if code.shared else "lattices"
        return f"{code.bits:g}-bit {lattices} of dimension {code.dimension}, groups of {code.group}"

    def summary(self, code: LatticeCode) -> dict[str, Any]:
        return code.to_dict() | {"groups": code.fitted(), "multipliers": None}

    @property
    def linear(self) -> type[QuantizedLinear]:
        return LatticeLinear
