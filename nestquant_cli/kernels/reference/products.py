"""Products of quantized weights in plain torch, on any device: what the kernels of `contract.products` compute.

The reference has no limits (`limits.LIMITS`) under which they are the fastest way, so that only `scale_sums` is taken
where a device has no kernel; the others are there to compare kernels with.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...e8.code import NestedCode
from ...rotation.parted import parted_rotation
from ...rotation.seeds import Seed
from ..int8 import integer_product
from .nested import unpack


def scale_sums(
    sums: Tensor,
    token_scale: Tensor,
    row_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    centered: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """(sums · token_scale + centered · shift) · row_scale + bias: `contract.products.scale_sums`."""
    y = sums.to(torch.float32) * token_scale[:, None]
    if centered is not None and shift is not None:
        y = torch.addcmul(y, centered[:, None].to(y.dtype), shift)
    y = y * row_scale
    return (y if bias is None else y + bias).to(dtype)


def integer_rows(
    tokens: Tensor,
    token_scale: Tensor,
    v: Tensor,
    row_scale: Tensor,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    centered: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """`scale_sums` of `integer_product`: `contract.products.integer_rows`."""
    sums, scale = integer_product(tokens, v), row_scale.view(torch.bfloat16).float()
    return scale_sums(sums, token_scale, scale, bias, dtype, centered, shift)


def rotated_product(x: Tensor, seed: Seed, v: Tensor, row_scale: Tensor, parts: int = 1) -> Tensor:
    """diag(row_scale)·V·R x: `contract.products.rotated_product`, for any number of tokens."""
    order = v.shape[1]
    rotated = parted_rotation(order, seed, parts).apply(F.pad(x.float(), (0, order - x.shape[1])))
    return (F.linear(rotated, v.float()) * row_scale.view(torch.bfloat16).float()).to(x.dtype)


def experts_product(
    x: Tensor, taken: Tensor, ends: list[int], v: list[Tensor], row_scale: list[Tensor], dtype: torch.dtype
) -> Tensor:
    """diag(row_scale)·V x of the tokens of each expert: `contract.products.experts_product`."""
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    parts = zip(x[taken].split(sizes), v, row_scale, strict=True)
    products = [F.linear(part, V.float()) * bits.view(torch.bfloat16).float() for part, V, bits in parts]
    return torch.cat(products).to(dtype)


def experts_sum(parts: list[Tensor], order: Tensor, weights: Tensor) -> Tensor:
    """Σ weight·output of the experts of each token: `contract.products.experts_sum`; differentiable."""
    weighted = torch.cat(parts) * weights.reshape(-1)[order, None]
    placed = weighted.new_zeros(weights.numel(), weighted.shape[1]).index_copy(0, order, weighted)
    return placed.view(*weights.shape, -1).sum(1, dtype=torch.float32).to(parts[0].dtype)


def product(words: Tensor, row_scale: Tensor, v_a: Tensor, scale_a: Tensor, code: NestedCode) -> Tensor:
    """Exact sums of packed words and integer tokens, then the scales: `contract.products.product`."""
    if v_a.dtype != torch.int8 or not code.int8 or scale_a.shape != v_a.shape[:1]:
        raise ValueError(f"no exact product of {v_a.dtype} by {tuple(scale_a.shape)} scales and limit {code.limit}")
    sums = integer_product(v_a, unpack(words, v_a.shape[1], code))
    return scale_sums(sums, scale_a, row_scale.float(), None, torch.float32)


def product_one(words: Tensor, row_scale: Tensor, x: Tensor, code: NestedCode) -> Tensor:
    """Packed words times tokens in float32: `contract.products.product_one`, for any number of tokens."""
    return F.linear(x.float(), unpack(words, x.shape[1], code).float()) * row_scale.float()


def product_many(words: Tensor, row_scale: Tensor, x: Tensor, code: NestedCode) -> Tensor:
    """Packed words times 16-bit tokens, sums in float32: `contract.products.product_many`."""
    if x.dtype not in (torch.bfloat16, torch.float16) or not code.int8:
        raise ValueError(f"no product of {x.dtype} tokens with a code of limit {code.limit}")
    return product_one(words, row_scale, x, code)
