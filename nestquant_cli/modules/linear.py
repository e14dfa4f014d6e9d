"""A Linear whose weight stays packed in memory and whose product is exact integer arithmetic where both sides are int8.

Y = diag(s_a) · (V_a · V_wᵀ) · diag(s_w)  [+ bias],   V_a, V_w integer, s_a per token, s_w per output row
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import for_device, products_for
from ..lattice.code import NestedCode, row_bytes
from .inputs import InputQuantizer, LinearInput, dequantize

_FEWEST_ROWS_CUDA = 17  # torch's int8 product on CUDA takes more than 16 rows and multiples of 8


class QuantizedLinear(nn.Module):
    """Replaces nn.Linear. State: `words`, `row_scale` and `bias`; or `weight` and `bias` when only inputs are coded.

    Args:
        in_features, out_features: of the original matrix.
        bias: whether it has one.
        source: the input quantizer, shared by the Linears with the same input.
        code: of the weight; None keeps the original weight in 16 bits.
        dtype: of the bias, and of the weight where it is kept.
        device: of the buffers.
    """

    bias: nn.Parameter | None
    words: Tensor  # (out_features, row_bytes) uint8
    row_scale: Tensor  # (out_features,) int16, the bits of a bfloat16: no cast of the module may round it

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        source: InputQuantizer,
        code: NestedCode | None,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.source, self.code = in_features, out_features, source, code
        self.dtype = dtype
        if code is None:
            weight = torch.empty(out_features, in_features, dtype=dtype, device=device)
            self.weight = nn.Parameter(weight, requires_grad=False)
        else:
            width = row_bytes(source.padded, code.word_bits)
            self.register_buffer("words", torch.zeros(out_features, width, dtype=torch.uint8, device=device))
            self.register_buffer("row_scale", torch.zeros(out_features, dtype=torch.int16, device=device))
        parameter = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device), requires_grad=False)
        self.register_parameter("bias", parameter if bias else None)

    def __getattr__(self, name: str) -> Any:
        """Packed, `weight` is an empty tensor: model code asks for its dtype, and initializes it unless flagged."""
        if name == "weight" and "words" in self.__dict__.get("_buffers", {}):
            stand_in = torch.empty(0, dtype=self.dtype, device=self.words.device)
            stand_in._is_hf_initialized = True  # type: ignore[attr-defined]
            return stand_in
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) to (..., out_features), in x's dtype."""
        coded = self.source(x)
        if self.code is None:
            y = F.linear(self.source.unrotate(dequantize(coded)).to(self.weight.dtype), self.weight).float()
        else:
            fused = packed_product(coded, self.words, self.row_scale, self.code, x.dtype)
            y = self._decoded_product(coded, x.dtype) if fused is None else fused
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _decoded_product(self, coded: LinearInput, dtype: torch.dtype) -> Tensor:
        v = self.decoded()
        y = integer_product(coded, v) if _both_int8(coded, v) else float_product(coded, v, dtype)
        return y.mul_(row_scale_of(self.row_scale))

    def decoded(self) -> Tensor:
        """The integer weight V (out_features, padded), rotated: W·Rᵀ ≈ diag(row_scale)·V."""
        assert self.code is not None
        return for_device(self.words.device).unpack(self.words, self.source.padded, self.code)

    def dequantized(self) -> Tensor:
        """The weight (out_features, in_features) float32 in the original basis."""
        if self.code is None:
            return self.weight.float()
        return self.source.unrotate(self.decoded().float() * row_scale_of(self.row_scale)[:, None])

    def extra_repr(self) -> str:
        code = "16 bit" if self.code is None else f"q={self.code.q}, multipliers={self.code.multipliers}"
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, {code}"


def packed_product(
    coded: LinearInput, words: Tensor, row_scale: Tensor, code: NestedCode, dtype: torch.dtype
) -> Tensor | None:
    """The product by kernels that read the packed words: (tokens, out) float32, or None where to decode first.

    They have no gradient. Values in bfloat16 are what `float_product` takes too.
    """
    products = products_for(words.device)
    values = coded.values
    if products is None or (torch.is_grad_enabled() and values.requires_grad):
        return None
    scale = row_scale.view(torch.bfloat16)
    if coded.scale is not None and values.dtype == torch.int8 and code.int8:
        return products.product(words, scale, values, coded.scale, code)
    x = dequantize(coded)
    if x.shape[0] <= products.FEW_TOKENS:
        return products.product_one(words, scale, x, code)
    if x.shape[0] <= products.FUSED_TOKENS and code.int8 and dtype == torch.bfloat16:
        return products.product_many(words, scale, x.to(dtype), code)
    return None


def integer_product(coded: LinearInput, v: Tensor) -> Tensor:
    """V_a·V_wᵀ in exact int32, times the token scales: (tokens, out) float32."""
    assert coded.scale is not None
    a = coded.values
    if a.is_cuda:
        pads = (0, -v.shape[0] % 8)
        rows = max(_FEWEST_ROWS_CUDA, a.shape[0])
        sums = torch._int_mm(F.pad(a, (0, 0, 0, rows - a.shape[0])), F.pad(v, (0, 0, *pads)).t())
        sums = sums[: a.shape[0], : v.shape[0]]
    else:
        sums = torch._int_mm(a, v.t())
    return sums.to(torch.float32) * coded.scale[:, None]


def float_product(coded: LinearInput, v: Tensor, dtype: torch.dtype) -> Tensor:
    """The same for inputs or weights that are not int8: (tokens, out) float32.

    An int8 v is exact in bfloat16 and float16; a wider one is taken in float32.
    """
    dtype = dtype if v.dtype == torch.int8 else torch.float32
    x = dequantize(coded)
    if dtype != torch.float16:
        return F.linear(x.to(dtype), v.to(dtype)).float()
    size = x.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)  # (tokens, 1)
    return (
        F.linear((x / size).to(dtype), v.to(dtype)).float() * size
    )  # sums of x·v itself may exceed the range of float16


def row_scale_of(bits: Tensor) -> Tensor:
    """float32 row scales from the stored bits of bfloat16."""
    return bits.view(torch.bfloat16).float()


def row_scale_bits(scale: Tensor) -> Tensor:
    """Bits (int16) of the bfloat16 nearest to each row scale."""
    return scale.to(torch.bfloat16).view(torch.int16)


def _both_int8(coded: LinearInput, v: Tensor) -> bool:
    return coded.scale is not None and coded.values.dtype == torch.int8 and v.dtype == torch.int8
