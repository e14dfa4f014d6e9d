"""Products of a coded or rotated input with an integer weight, a panel of rows at a time.

Y = (diag(s_a) · V_a · V_wᵀ [+ c · tᵀ]) · diag(s_w)  [+ bias],   V_a, V_w integer, s_a per token, s_w per output row

Where the input's code has a center μ, c (0 or 1) says from which tokens it was subtracted, and t = V_w·μ is the shift.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..e8.code import NestedCode
from ..kernels import products_for
from ..kernels.dense import linear
from ..kernels.int8 import integer_product
from .inputs import LinearInput

PANEL = 1 << 20  # entries of a packed matrix that are decoded at a time: they stay in the caches

Weight = Callable[[int, int], Tensor]  # (start, stop) to these rows of V, int8 or int16


def product(
    coded: LinearInput,
    weight: Weight,
    step: int,
    row_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    shift: Tensor | None = None,
) -> Tensor:
    """The product of all rows.

    Args:
        coded: tokens.
        weight: hands out rows of V (rows, padded).
        step: rows to take at a time.
        row_scale: (rows,) bfloat16.
        bias: (rows,) or None.
        dtype: dtype of the result.
        shift: (rows,) float32, needed where integers of both sides are multiplied and the input's code has a center.

    Returns:
        (tokens, rows) of dtype.
    """
    rows = row_scale.shape[0]
    if step >= rows:
        return _panel(coded, weight(0, rows), row_scale, bias, dtype, shift)
    panels = []
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        v = weight(part.start, part.stop)
        panels.append(_panel(coded, v, row_scale[part], _part(bias, part), dtype, _part(shift, part)))
    return torch.cat(panels, dim=1)


def _part(values: Tensor | None, part: slice) -> Tensor | None:
    return None if values is None else values[part]


def _panel(
    coded: LinearInput,
    v: Tensor,
    row_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    shift: Tensor | None,
) -> Tensor:
    int8 = v.dtype == torch.int8
    if coded.scale is not None and coded.values.dtype == torch.int8 and int8:
        return _integers(coded, coded.scale, v, row_scale, bias, dtype, shift)
    if coded.values.dtype == torch.bfloat16 and int8:
        return _weights_only(coded, v, row_scale, bias)
    return _finish(float_product(coded, v, dtype), row_scale, bias, dtype)


def _integers(
    coded: LinearInput,
    scale: Tensor,
    v: Tensor,
    row_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    shift: Tensor | None,
) -> Tensor:
    sums = integer_product(coded.values, v)
    if not sums.is_cpu:
        return _finish(_shifted(sums.to(torch.float32) * scale[:, None], coded, shift), row_scale, bias, dtype)
    from ..kernels.cpu.inputs import scaled

    bias = None if bias is None else bias.detach().float()
    return scaled(sums, scale, row_scale.float(), bias, dtype, coded.centered, shift)


def _shifted(y: Tensor, coded: LinearInput, shift: Tensor | None) -> Tensor:
    if shift is None or coded.centered is None:
        return y
    return torch.addcmul(y, coded.centered[:, None].to(y.dtype), shift)


def _weights_only(coded: LinearInput, v: Tensor, row_scale: Tensor, bias: Tensor | None) -> Tensor:
    """For bfloat16 tokens, in bfloat16, which holds int8 exactly; sums are kept in float32 inside."""
    y = linear(coded.values, v.to(torch.bfloat16)).mul_(row_scale)
    return y if bias is None else y + bias


def _finish(y: Tensor, row_scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    y = y * row_scale.float()
    return (y if bias is None else y + bias).to(dtype)


def packed_product(
    coded: LinearInput,
    words: Tensor,
    row_scale: Tensor,
    code: NestedCode,
    bias: Tensor | None,
    dtype: torch.dtype,
    shift: Tensor | None = None,
) -> Tensor | None:
    """The product by kernels that read the packed words: (tokens, rows) of dtype, or None where to decode first."""
    products, values = products_for(words.device), coded.values
    if products is None:
        return _dot(coded, words, row_scale, code, bias, dtype)
    if coded.scale is not None and values.dtype == torch.int8 and code.int8:
        y = products.product(words, row_scale, values, coded.scale, code)
        y = _shifted(y, coded, None if shift is None else shift * row_scale.float())
    else:
        x = coded.dequantized()
        if x.shape[0] <= products.limits.dot_tokens:
            y = products.product_one(words, row_scale, x, code)
        elif x.shape[0] <= products.limits.fused_tokens and code.int8 and dtype == torch.bfloat16:
            y = products.product_many(words, row_scale, x.to(dtype), code)
        else:
            return None
    return (y if bias is None else y + bias).to(dtype)


def _dot(
    coded: LinearInput, words: Tensor, row_scale: Tensor, code: NestedCode, bias: Tensor | None, dtype: torch.dtype
) -> Tensor | None:
    """On the CPU, for a single token that is not coded; otherwise decoding first is the faster way."""
    if words.device.type != "cpu" or coded.scale is not None or len(coded.values) != 1:
        return None
    from ..kernels.cpu.product import dot

    return _finish(dot(words, coded.values[0], code)[None], row_scale, bias, dtype)


def float_product(coded: LinearInput, v: Tensor, dtype: torch.dtype) -> Tensor:
    """V_wᵀ times inputs or weights that are not int8: (tokens, rows) float32.

    An int8 v is exact in bfloat16 and float16; a wider one is taken in float32.
    """
    dtype = dtype if v.dtype == torch.int8 else torch.float32
    x = coded.dequantized()
    if dtype != torch.float16:
        return linear(x.to(dtype), v.to(dtype)).float()
    # sums of x·v itself may exceed the range of float16
    size = x.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)  # (tokens, 1)
    return F.linear((x / size).to(dtype), v.to(dtype)).float() * size
