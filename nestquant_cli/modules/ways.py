"""The ways to multiply tokens with a quantized weight. `multiply.choose` says which one is taken when.

    Y = (diag(s_a)·V_a·Vᵀ [+ c·tᵀ])·diag(s) [+ b],   V_a, V integer, s_a per token, s per row of the weight

Where the code of the input has a center μ, c (0 or 1) says from which tokens it was subtracted, and t = V·μ is the
shift. An input that is not rounded is floats X in place of diag(s_a)·V_a.

Each way takes the Linear, its input x (..., features), the bias (rows,) or None, and the kernels of x's device, and
returns (tokens, rows) in x's dtype or in float32. The first line of its docstring says what is multiplied, and
`nestquant inspect` prints it; the rest says how many bytes a weight it reads, when it is taken, and what decided that.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.vectors import Rounded
from ..kernels import Kernels
from ..kernels.contract.constants import MOST_ENTRIES
from ..kernels.dense import linear
from .inputs import InputQuantizer

PANEL = 1 << 20  # entries of a matrix that are decoded at a time: they stay in the caches


class Weight(Protocol):
    """What the ways ask of a `QuantizedLinear`, whose file documents it."""

    out_features: int
    source: InputQuantizer
    code: Any
    weight: Any

    @property
    def resident(self) -> str: ...

    def stored(self, name: str) -> Tensor: ...

    def scale(self) -> Tensor: ...

    def integers(self, start: int, stop: int) -> Tensor: ...

    def values(self, start: int, stop: int) -> Tensor: ...

    def shift(self) -> Tensor: ...

    def joined_product(self, x: Tensor) -> Tensor: ...


Way = Callable[[Weight, Tensor, Tensor | None, Kernels], Tensor]


def kept_weight(layer: Weight, x: Tensor, bias: Tensor | None, kernels: Kernels) -> Tensor:
    """The weight as it was, in 16 bits.

    2 bytes a weight, by torch's own product. Taken where only inputs are coded: they are rounded in the rotated basis
    and brought back, since the weight was never rotated.
    """
    values, weight = layer.source.unrotate(layer.source(x).dequantized()), layer.weight
    return linear(values.to(weight.dtype), weight, bias)


def float32_values(layer: Weight, x: Tensor, bias: Tensor | None, kernels: Kernels) -> Tensor:
    """The weight decoded to float32, a panel of rows at a time.

    The stored bytes, and 4 bytes a weight to and from the caches. Taken where a row is not integers with one scale:
    groups of integers, and lattices. No kernel multiplies those.
    """
    values = layer.source(x).dequantized()
    step = max(1, PANEL // layer.source.padded)
    starts = range(0, layer.out_features, step)
    y = torch.cat([F.linear(values, layer.values(start, start + step)) for start in starts], dim=1)
    return y if bias is None else y + bias


def joined_rows(layer: Weight, x: Tensor, bias: Tensor | None, kernels: Kernels) -> Tensor:
    """The int8 rows of all Linears with this input in one kernel, which also rotates the tokens.

    1 byte a weight. Taken for up to `Limits.joined_tokens` tokens that are not rounded, with float32 sums, or
    `Limits.rounded_tokens` of bfloat16, which become integers of 16 bits as in `int16_rows`: reading the weights takes
    all the time then, and converting the matrix first would read and write 2 bytes more a weight. All matrices of
    SmolLM2-135M one after another on one core with AMX take 0.65 of the time of bfloat16 matrices in oneDNN's own
    layout for one token and 0.8 for 16, rotation included.
    """
    y = layer.joined_product(x)
    return y if bias is None else y + bias


def words_by_few(layer: Weight, x: Tensor, bias: Tensor | None, kernels: Kernels) -> Tensor:
    """The packed words, decoded inside the dot products.

    The bits of the code alone, 0.5 bytes a weight at 4 bits; sums in float32. Taken for up to `Limits.dot_tokens`
    tokens: on a CPU for one, since words are decoded again for each and decoding takes the time. On a GPU for four:
    threads that decode a row also hold its sums; 52 µs for 4096 × 14336 on an H100 by count, bfloat16 35 µs.
    """
    y = kernels.product_one(layer.stored("words"), layer.scale(), layer.source(x).dequantized(), layer.code)
    return _finished(y, bias, x.dtype)


def words_by_many(layer: Weight, x: Tensor, bias: Tensor | None, kernels: Kernels) -> Tensor:
    """The packed words, decoded inside tiles of a bfloat16 product.

    The bits of the code alone; sums in float32. Taken for up to `Limits.fused_tokens` tokens, which one tile holds, so
    that each word is decoded once. Decoding in every tile of 128 tokens takes 830 µs for 2,048 tokens and 4096 × 14336
    on an H100 by count, a bfloat16 product 243 µs.
    """
    tokens = layer.source(x).dequantized().to(x.dtype)
    y = kernels.product_many(layer.stored("words"), layer.scale(), tokens, layer.code)
    return _finished(y, bias, x.dtype)


def words_by_integers(layer: Weight, x: Tensor, bias: Tensor | None, kernels: Kernels) -> Tensor:
    """The packed words and int8 tokens in one kernel, sums exact in int32.

    The bits of the code alone. Taken on devices that have the kernel, for any number of tokens: it decodes in the tile
    for few and to int8 first for many. For 2,048 tokens and 4096 × 14336 188 µs on an H100 by count, bfloat16 243 µs.
    """
    tokens, scale = layer.source(x), layer.scale()
    assert tokens.scale is not None
    y = kernels.product(layer.stored("words"), scale, tokens.values, tokens.scale, layer.code)
    if tokens.centered is not None:
        y = torch.addcmul(y, tokens.centered[:, None].to(y.dtype), layer.shift() * scale.float())
    return _finished(y, bias, x.dtype)


def integer_sums(layer: Weight, x: Tensor, bias: Tensor | None, kernels: Kernels) -> Tensor:
    """Int8 rows and int8 tokens, sums exact in int32; packed words are decoded a panel at a time.

    1 byte a weight in the int8 form. Taken where both sides are int8 with one scale a row, and with packed words
    for every number of tokens, as no CPU kernel reads them here. Up to `Limits.integer_rows_tokens` tokens of bfloat16
    take one call, to the same bits. With AMX on one core 4,096 × 4,096 takes 0.3 of the time of bfloat16 for one token,
    0.5 for 128 and 512, 0.7 for 2,048; 1,536 × 576 takes 0.3, 0.6, 0.8 and 1.1 (`scripts/bench_products.py`).
    """
    tokens = layer.source(x)
    token_scale = tokens.scale
    assert token_scale is not None
    bias = None if bias is None else bias.detach().float()
    shift = None if tokens.centered is None else layer.shift()
    at_once = len(tokens.values) <= kernels.limits.integer_rows_tokens and x.dtype == torch.bfloat16
    scale = layer.stored("row_scale") if at_once else layer.scale().float()

    def multiply(V: Tensor, part: slice) -> Tensor:
        b, t = bias if bias is None else bias[part], shift if shift is None else shift[part]
        if at_once:
            further = b, tokens.centered, t
            return kernels.integer_rows(tokens.values, token_scale, V, scale[part], x.dtype, *further)
        sums = kernels.integer_product(tokens.values, V)
        return kernels.scale_sums(sums, token_scale, scale[part], b, x.dtype, tokens.centered, t)

    return _by_panels(layer, multiply)


def integer_sums_of_parts(layer: Weight, x: Tensor, bias: Tensor | None, kernels: Kernels) -> Tensor:
    """Int8 rows and int8 tokens part by part, the sums of each exact in int32, added up in float32.

    1 byte a weight in the int8 form. Taken where parts of a token have scales of their own, for tensor parallel in one
    process; a process that holds one part alone multiplies by another way.
    """
    tokens, scale = layer.source(x), layer.scale().float()
    token_scale, centered = tokens.scale, tokens.centered
    assert token_scale is not None
    parts = token_scale.shape[1]
    shift = None if centered is None else layer.shift()  # (parts, rows)
    taken = tokens.values.unflatten(1, (parts, -1)).unbind(1)

    def multiply(V: Tensor, part: slice) -> Tensor:
        columns = V.unflatten(1, (parts, -1)).unbind(1)
        y = torch.zeros(len(tokens.values), len(V), device=V.device)
        for number in range(parts):
            sums = kernels.integer_product(taken[number], columns[number])
            y.addcmul_(sums.float(), token_scale[:, number, None])
            if shift is not None and centered is not None:
                y.addcmul_(centered[:, number, None].float(), shift[number, part])
        y *= scale[part]
        return (y if bias is None else y + bias[part]).to(x.dtype)

    return _by_panels(layer, multiply)


def int16_rows(layer: Weight, x: Tensor, bias: Tensor | None, kernels: Kernels) -> Tensor:
    """Int8 rows and tokens as integers of 16 bits with a scale each, sums exact in two digits.

    1 byte a weight in the int8 form, never converted; tokens are rounded 40 times finer than bfloat16. Taken for up to
    `Limits.int16_tokens` bfloat16 tokens on processors with VNNI instructions. By count, AMX multiplies 512 weights and
    tokens a cycle, as with bfloat16, and VNNI 64, float32 32. 16 tokens and 4,096 × 4,096 on one core with AMX take
    0.36 of the time of bfloat16, rotation included; converting the matrix first takes 6 times as long as bfloat16.
    """
    if layer.source.padded > MOST_ENTRIES:
        return float_rows(layer, x, bias, kernels)
    tokens, size = layer.source.int16(x, kernels)

    def multiply(V: Tensor, part: slice) -> Tensor:
        y = kernels.int16_product(tokens, size, V, layer.stored("row_scale")[part], x.dtype)
        return y if bias is None else y + bias[part]

    return _by_panels(layer, multiply)


def bfloat16_rows(layer: Weight, x: Tensor, bias: Tensor | None, kernels: Kernels) -> Tensor:
    """Integer rows as bfloat16, which holds int8 exactly, and bfloat16 tokens, sums in float32.

    1 byte a weight in the int8 form, and 2 to and from the caches. Taken for bfloat16 tokens that a kernel rotates in
    bfloat16, where they are so many that converting the matrix is worth it. Processors without bfloat16 instructions
    multiply in float32 (`kernels.dense`), 6 to 8 times as fast.
    """
    tokens, scale = layer.source(x).values, layer.scale()

    def multiply(V: Tensor, part: slice) -> Tensor:
        y = linear(tokens, V.to(torch.bfloat16)).mul_(scale[part])
        return y if bias is None else y + bias[part]

    return _by_panels(layer, multiply)


def float_rows(layer: Weight, x: Tensor, bias: Tensor | None, kernels: Kernels) -> Tensor:
    """Integer rows as floats of the input's dtype, or as float32 where they do not fit int8.

    1 or 2 bytes a weight in memory, and the dtype's to and from the caches. Taken for everything else: float32 and
    float16 tokens, codes beyond int8 on either side, and rotations that no kernel knows.
    """
    tokens, scale = layer.source(x), layer.scale().float()

    def multiply(V: Tensor, part: slice) -> Tensor:
        y = float_product(tokens, V, x.dtype) * scale[part]
        return (y if bias is None else y + bias[part]).to(x.dtype)

    return _by_panels(layer, multiply)


def float_product(tokens: Rounded, V: Tensor, dtype: torch.dtype) -> Tensor:
    """Tokens times integers (rows, padded) in a dtype, or in float32 where V is not int8: (tokens, rows) float32.

    An int8 V is exact in bfloat16 and float16. In float16 tokens are divided by their largest entry first, as sums of
    x·v may exceed its range.
    """
    dtype = dtype if V.dtype == torch.int8 else torch.float32
    x = tokens.dequantized()
    if dtype != torch.float16:
        return linear(x.to(dtype), V.to(dtype)).float()
    size = x.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)  # (tokens, 1)
    return F.linear((x / size).to(dtype), V.to(dtype)).float() * size


def _by_panels(layer: Weight, multiply: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """multiply(rows of V, which rows) for all rows: at once in the int8 form, else PANEL entries at a time."""
    rows = layer.out_features
    step = rows if layer.resident == "int8" else max(1, PANEL // layer.source.padded)
    if step >= rows:
        return multiply(layer.integers(0, rows), slice(0, rows))
    panels = []
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        panels.append(multiply(layer.integers(part.start, part.stop), part))
    return torch.cat(panels, dim=1)


def _finished(y: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (y if bias is None else y + bias).to(dtype)
