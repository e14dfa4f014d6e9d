"""A coded layer of vLLM as quantized Linears, one for each matrix or run of matrices that are multiplied alike."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...codecs.registry import codec_of
from ...codecs.weights import TensorForms
from ...modules.inputs import InputQuantizer
from ...modules.linear import QuantizedLinear
from ...modules.multiply import WeightForm
from .pieces import Piece


class LayerInput(InputQuantizer):
    """The input of the matrices in one layer: what was made of it is kept while they are multiplied, and no longer."""

    def once(self, x: Tensor, key: Hashable, make: Callable[[Tensor], Any]) -> Any:
        """make(x as (tokens, features)), called once for each key until `forget`."""
        results = self._results()
        if key not in results:
            results[key] = make(x.reshape(-1, self.features))
        return results[key]

    def forget(self) -> None:
        """Drops what was made."""
        self._results().clear()

    def _results(self) -> dict[Hashable, Any]:
        results: dict[Hashable, Any] | None = getattr(self._of_thread, "results", None)
        if results is None:
            results = self._of_thread.results = {}
        return results


@dataclass(frozen=True)
class _Int8Rows:
    """The "code" of rows that are int8 integers already, whatever codes they come from.

    Attributes:
        form: what the choice of a product depends on.
    """

    codec: ClassVar[str] = "none"
    int8: ClassVar[bool] = True
    form: WeightForm

    def tensors(self, rows: int, entries: int) -> TensorForms:
        return {"row_scale": ((rows,), torch.int16), "v": ((rows, entries), torch.int8)}


class Int8Linear(QuantizedLinear):
    """Int8 rows of one or several matrices with the same input, each with a scale; there is no way back to words."""

    @classmethod
    def form_of(cls, code: Any, resident: str) -> WeightForm:
        form: WeightForm = code.form
        return form

    @staticmethod
    def of(layers: list[QuantizedLinear]) -> "Int8Linear":
        """The rows of layers whose rows are int8 integers with one scale, one below the other."""
        first, rows = layers[0], sum(layer.out_features for layer in layers)
        scales = torch.cat([layer.row_scale for layer in layers])
        code: Any = _Int8Rows(first.form_of(first.code, "int8"))
        joined = Int8Linear(first.in_features, rows, False, first.source, code, first.dtype, "meta")
        joined.v = torch.cat([layer.decoded() for layer in layers])
        joined.row_scale = scales
        return joined


class CodedLayer:
    """The product of a layer.

    Args:
        linears: one below the other in the layer's output; those with the same input follow each other.
    """

    def __init__(self, linears: list[QuantizedLinear]) -> None:
        self.linears = linears
        self.rows = sum(linear.out_features for linear in linears)
        self._inputs: list[Any] = list({id(linear.source): linear.source for linear in linears}.values())

    def compute(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., features) to (..., rows) in its dtype."""
        try:
            if len(self.linears) == 1:
                return self.linears[0].compute(x, bias)
            products, start = [], 0
            for linear in self.linears:
                stop = start + linear.out_features
                products.append(linear.compute(x, None if bias is None else bias[start:stop]))
                start = stop
            return torch.cat(products, dim=-1)
        finally:
            for source in self._inputs:
                source.forget()

    def dequantized(self) -> Tensor:
        """The weight (rows, features) float32."""
        return torch.cat([linear.dequantized() for linear in self.linears])


def coded_layer(
    pieces: list[Piece],
    tensors: list[dict[str, Tensor]],
    source_of: Callable[[str], LayerInput],
    dtype: torch.dtype,
    int8: bool,
) -> CodedLayer:
    """The layer made of loaded tensors.

    Args:
        pieces: the matrices in the order of their rows.
        tensors: of each piece, as `weights.take_tensors` gives them.
        source_of: the input quantizer by the name of the input, the same one for the same name.
        dtype: dtype of the layer.
        int8: whether weights that can be int8 are held so.
    """
    linears = [
        _linear(piece, loaded, source_of(piece.linear.input), dtype)
        for piece, loaded in zip(pieces, tensors, strict=True)
    ]
    if not int8:
        return CodedLayer(linears)
    held: list[QuantizedLinear] = []
    for (joins, _), run in groupby(linears, key=lambda linear: (_joins(linear), id(linear.source))):
        members = list(run)
        if joins:
            held.append(Int8Linear.of(members))
            continue
        for linear in members:
            linear.hold_int8()
        held.extend(members)
    return CodedLayer(held)


def _joins(linear: QuantizedLinear) -> bool:
    """Whether the rows are int8 integers with one scale each, which multiply alike whatever code they come from."""
    if linear.code is None or not linear.code.int8:
        return False
    form = linear.form_of(linear.code, "int8")
    return form.resident == "int8" and form.integers and form.int8


def _linear(piece: Piece, tensors: Mapping[str, Tensor], source: LayerInput, dtype: torch.dtype) -> QuantizedLinear:
    code: Any = piece.linear.code
    kind = QuantizedLinear if code is None else codec_of(code).linear
    linear = kind(piece.linear.in_features, piece.place.rows, False, source, code, dtype, "meta")
    for name, tensor in tensors.items():
        if name == "weight":
            linear.weight = torch.nn.Parameter(tensor, requires_grad=False)
        else:
            setattr(linear, name, tensor)
    return linear
