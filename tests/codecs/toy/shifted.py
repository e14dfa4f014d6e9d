"""A whole codec on a page: integers with one scale and one offset a row, an entry is scale·(digit − offset).

In the package it would be a folder, and one line in `codecs/registry.py` would add it: `ShiftedCodec(),`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nestquant_cli.base.fields import Fields
from nestquant_cli.codecs.ldlq import ldlq
from nestquant_cli.codecs.protocol import Checked, Codec, Grid
from nestquant_cli.codecs.row_scale import check_row_scales, row_scale_bits, row_scale_of
from nestquant_cli.codecs.weights import RoundedRows, TensorForms, by_matrix
from nestquant_cli.e8.code import BLOCK, row_bytes
from nestquant_cli.e8.digits import pack_digits, unpack_digits
from nestquant_cli.modules.linear import QuantizedLinear
from nestquant_cli.quantization.factors import Feedback


@dataclass(frozen=True)
class ShiftedCode:
    """Shape and code in one, as nothing is fitted that is not in a tensor; bits of a digit, 2 to 7."""

    codec: ClassVar[str] = "shifted"
    int8: ClassVar[bool] = True

    bits: int

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 2 <= self.bits <= 7:
            raise ValueError(f"bits {self.bits!r} of shifted integers are not a whole number from 2 to 7")

    @property
    def word_bits(self) -> int:
        return BLOCK * self.bits

    def to_dict(self) -> dict[str, Any]:
        return {"codec": self.codec, "bits": self.bits}

    def tensors(self, rows: int, entries: int) -> TensorForms:
        words = (rows, row_bytes(entries, self.word_bits)), torch.uint8
        return {"words": words, "row_scale": ((rows,), torch.int16), "offset": ((rows,), torch.int16)}


class ShiftedLinear(QuantizedLinear):
    """State: `words`, `row_scale`, `offset` and `bias`, packed alone; its products are those of decoded rows."""

    def decode(self, start: int, stop: int) -> Tensor:
        words, offset = self.stored("words"), self.stored("offset")
        return _integers(self.code, words[start:stop], offset[start:stop], self.source.padded)


class ShiftedCodec(Codec[ShiftedCode, ShiftedCode]):
    """A recipe gives bits alone; rounding goes column by column, with feedback as in GPTQ."""

    name: ClassVar[str] = "shifted"
    settings: ClassVar[tuple[str, ...]] = ()
    remedy: ClassVar[str] = "whole bits from 2 to 7"
    columns: ClassVar[int | None] = 1
    format_version: ClassVar[int] = 4
    tensor_kinds: ClassVar[Mapping[str, str]] = {"words": "words", "row_scale": "row scales", "offset": "offsets"}

    def shape(self, bits: float, settings: Any, place: str) -> ShiftedCode:
        return ShiftedCode(int(bits) if bits == int(bits) else 0)

    def shape_from(self, fields: Fields) -> ShiftedCode:
        return ShiftedCode(fields.integer("bits", 2, 7))

    def shape_of(self, code: ShiftedCode) -> ShiftedCode:
        return code

    def quantize(self, step: Feedback, rows: list[int], shape: ShiftedCode, seed: int, paths: int) -> RoundedRows:
        low, high = step.target.amin(1).clamp(max=0), step.target.amax(1).clamp(min=0)
        most = (1 << shape.bits) - 1
        scale = row_scale_bits(((high - low) / most).clamp(min=1e-30))
        unit, digits = row_scale_of(scale)[:, None], torch.empty_like(step.target)
        offset = (-low[:, None] / unit).round().clamp(0, most)

        def round_column(target: Tensor, number: int) -> Tensor:
            digits[:, number : number + 1] = (target / unit + offset).round().clamp(0, most)
            return unit * (digits[:, number : number + 1] - offset)

        values = ldlq(step.target, step.lower, round_column, columns=1)
        words = pack_digits(digits.to(torch.uint8), shape.bits)
        tensors = {"words": words, "row_scale": scale, "offset": offset[:, 0].to(torch.int16)}
        records = [{"code": shape.to_dict()} for _ in rows]
        return RoundedRows(by_matrix(tensors, rows), values, [shape] * len(rows), records)

    def decode(self, code: ShiftedCode, tensors: Mapping[str, Tensor], entries: int) -> Tensor:
        return self.integers(code, tensors, entries).float() * row_scale_of(tensors["row_scale"])[:, None]

    def code_to_dict(self, code: ShiftedCode, shape: ShiftedCode) -> dict[str, Any]:
        return {}

    def code_from(self, fields: Fields, shape: ShiftedCode, entries: int) -> ShiftedCode:
        return shape

    def check(self, code: ShiftedCode, stored: Mapping[str, NDArray[Any]], entries: int) -> Checked:
        beyond = np.flatnonzero((stored["offset"] < 0) | (stored["offset"] >> code.bits))
        problem = f"the offset of row {beyond[0]} is no digit" if len(beyond) else None
        problems = {"row_scale": check_row_scales(stored["row_scale"]), "offset": problem}
        return Checked(problems, [len(stored["words"]) * entries // BLOCK])

    def check_record(self, code: ShiftedCode, record: Mapping[str, Any], checked: Checked) -> str | None:
        return None if record.get("code") == code.to_dict() else f"records the code {record.get('code')}"

    def describe(self, code: ShiftedCode) -> str:
        return f"{code.bits}-bit shifted integers"

    def grid(self, code: ShiftedCode, columns: int, name: str) -> Grid:
        return Grid(8, None)

    def integers(self, code: ShiftedCode, tensors: Mapping[str, Tensor], entries: int) -> Tensor:
        return _integers(code, tensors["words"], tensors["offset"], entries)

    @property
    def linear(self) -> type[QuantizedLinear]:
        return ShiftedLinear


def _integers(code: ShiftedCode, words: Tensor, offset: Tensor, entries: int) -> Tensor:
    return (unpack_digits(words, entries, code.bits) - offset[:, None]).to(torch.int8)
