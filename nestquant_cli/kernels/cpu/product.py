"""Products with a few tokens on the CPU, bound by reading the weights, on torch tensors.

Packed words are decoded on the way. For int8 rows the tokens are rotated first, in the same call.
"""

import numpy as np
import torch
from torch import Tensor

from ...e8.code import BLOCK, NestedCode
from ...rotation.seeds import Seed
from ..contract.constants import MOST_ENTRIES
from ..reference import products as reference
from .amx import ROWS
from .dot import dot_rows, rotate_and_dot
from .dot_experts import add_experts, dot_experts
from .e8 import LANES
from .inputs import plan_of, sides
from .instructions import PLAIN, kind
from .int16_once import multiply_integers, rotate_and_multiply
from .int16_tensors import experts_by_int16
from .nested import multipliers_of
from .threads import share

# Pairs of an expert, on average, from which tokens become integers: a block of 32 rows takes as long for 16 tokens as
# for one. 1024 × 1024 takes 0.10 ms for one token in float32, 0.31 ms for four, and 0.16 ms by integers for up to 16.
FEW_PAIRS = 1.5


def product_one(words: Tensor, row_scale: Tensor, x: Tensor, code: NestedCode) -> Tensor:
    """Product of packed words with one token that is not coded: `contract.products.product_one`, by `dot`."""
    if len(x) > 1:
        raise ValueError(f"{len(x)} tokens are more than one")
    if not len(x):
        return x.new_empty(0, len(words), dtype=torch.float32)
    return dot(words, x[0], code)[None] * row_scale.float()


def dot(packed: Tensor, x: Tensor, code: NestedCode) -> Tensor:
    """V·x of the integers V that packed words stand for.

    Args:
        packed: (rows, row_bytes) uint8.
        x: (entries,) floating point, entries a multiple of 8.
        code: the nested code.

    Returns:
        (rows,) float32; sums are taken in float32.
    """
    y = torch.empty(packed.shape[0])
    entries = x.shape[0]
    fixed = packed.contiguous().numpy(), code.word_bits, code.q, multipliers_of(code), x.float().numpy(), y.numpy()
    share(dot_rows.on_team, fixed, packed.shape[0], entries // BLOCK, LANES)
    return y


def rotated_product(x: Tensor, seed: Seed, v: Tensor, row_scale: Tensor, parts: int = 1) -> Tensor:
    """diag(row_scale)·V·R x for a few tokens: `contract.products.rotated_product`."""
    rows, order = v.shape
    plan = plan_of(order, seed, parts)
    assert plan is not None, "no pass rotates this order"
    narrow = x.dtype == torch.bfloat16
    if narrow and order <= MOST_ENTRIES and kind() != PLAIN:
        return _by_int16(x, plan, v, row_scale)
    out = torch.empty(x.shape[0], rows, dtype=torch.bfloat16 if narrow else torch.float32)
    scales = row_scale.view(torch.uint16).numpy()
    share(rotate_and_dot, (*sides(x), plan, v.numpy(), scales, *sides(out)), rows, order // BLOCK)
    return out if narrow else out.to(x.dtype)


def _by_int16(x: Tensor, plan: tuple[np.ndarray, ...], v: Tensor, row_scale: Tensor) -> Tensor:
    """The product of bfloat16 tokens that are rounded to 16 bits. Addresses: each array takes time to hand over."""
    (tokens, features), (rows, order) = x.shape, v.shape
    x, v, row_scale = x.contiguous(), v.contiguous(), row_scale.contiguous()
    y = torch.empty(tokens, rows, dtype=torch.bfloat16)
    if not tokens:
        return y
    sizes, weight = (tokens, features, rows, order), (v.data_ptr(), row_scale.data_ptr())
    fixed = x.data_ptr(), sizes, plan, weight, kind(), y.data_ptr()
    share(rotate_and_multiply, fixed, -(-rows // ROWS), ROWS * order // BLOCK)
    return y


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
    """`scaled` of int8 tokens times int8 rows in one call: `contract.products.integer_rows`."""
    (count, order), rows = tokens.shape, len(v)
    if dtype != torch.bfloat16 or kind() == PLAIN or order > MOST_ENTRIES or not count:
        return reference.integer_rows(tokens, token_scale, v, row_scale, dtype, bias, centered, shift)
    tokens, token_scale, v, row_scale = (each.contiguous() for each in (tokens, token_scale, v, row_scale))
    y = torch.empty(count, rows, dtype=dtype)
    addresses = tokens.data_ptr(), token_scale.data_ptr()
    held = [each if each is None else each.contiguous() for each in (centered, shift, bias)]
    further = tuple(0 if each is None else each.data_ptr() for each in held)
    fixed = *addresses, further, (count, rows, order), (v.data_ptr(), row_scale.data_ptr()), kind(), y.data_ptr()
    share(multiply_integers, fixed, -(-rows // ROWS), ROWS * order // BLOCK)
    return y


def experts_product(
    x: Tensor, taken: Tensor, ends: list[int], v: list[Tensor], row_scale: list[Tensor], dtype: torch.dtype
) -> Tensor:
    """diag(row_scale)·V x of the tokens of each expert: `contract.products.experts_product`."""
    rows, order = v[0].shape
    narrow = dtype == torch.bfloat16
    if narrow and order <= MOST_ENTRIES and kind() != PLAIN and len(taken) > FEW_PAIRS * len(ends):
        return experts_by_int16(x, taken, ends, v, row_scale, dtype)
    out = torch.empty(len(taken), rows, dtype=torch.bfloat16 if narrow else torch.float32)
    addresses = np.array([(a.data_ptr(), b.data_ptr()) for a, b in zip(v, row_scale, strict=True)], np.int64)
    fixed = x.numpy(), taken.numpy(), np.array(ends, np.int64), addresses, rows, *sides(out)
    share(dot_experts, fixed, len(v) * rows, order // BLOCK)
    return out if narrow else out.to(dtype)


def experts_sum(parts: list[Tensor], order: Tensor, weights: Tensor) -> Tensor:
    """Σ weight·output of the experts of each token in one pass: `contract.products.experts_sum`."""
    dtype, size = parts[0].dtype, parts[0].shape[1]
    if dtype not in (torch.bfloat16, torch.float32):
        return reference.experts_sum(parts, order, weights)
    tokens = len(weights)
    parts = [part.contiguous() for part in parts]
    rows = [part.data_ptr() + part.element_size() * size * np.arange(len(part)) for part in parts]
    addresses = np.zeros(weights.numel(), np.int64)
    addresses[order.numpy()] = np.concatenate(rows)
    out = torch.empty(tokens, size, dtype=dtype)
    fixed = addresses, weights.float().reshape(-1).numpy(), weights.shape[1], *sides(out)
    share(add_experts.on_team, fixed, tokens, weights.shape[1] * size // BLOCK)
    return out
