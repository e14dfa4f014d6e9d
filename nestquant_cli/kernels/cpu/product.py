"""Products with a few tokens, bound by reading the weights. Compiled by Numba.

Packed words are decoded on the way; there lanes are rows of the matrix, so that sums stay in their lanes and a
coordinate of the token is a scalar. For int8 rows the tokens are rotated first, in the same call.
"""

import numpy as np
import torch
from torch import Tensor

from ...e8.code import BLOCK, NestedCode
from . import tokens as cpu_tokens
from .after_product import rounded
from .e8 import LANES, OPTIONS, ZERO
from .inputs import plan_of, sides
from .jit import njit
from .nested import multipliers_of
from .threads import share, spread
from .words import _FACTOR, _ROWS, _decode, _read, _split

_TOKEN = _ROWS  # after the rows of the decoder: the eight coordinates that meet the block, then the sums
_SUMS = _ROWS + LANES


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
    share(dot_rows_on_team, fixed, packed.shape[0], entries // BLOCK, LANES)
    return y


@njit(**OPTIONS)
def dot_rows(packed, word_bits, q, multipliers, x, y, start, stop):  # type: ignore[no-untyped-def]
    """Fills y (rows,) float32 for the rows start … stop; the arguments are those of `dot`."""
    work = np.zeros(_SUMS + LANES, np.float32)
    words = np.zeros(LANES, np.uint64)
    stream = packed.reshape(packed.size)
    side = np.float32(q)
    last = multipliers.shape[0] - 1
    for first in range(start, stop, LANES):
        count = min(LANES, stop - first)
        for lane in range(LANES):
            work[_SUMS + lane] = ZERO
        for column in range(x.shape[0] // 8):
            for lane in range(count):
                words[lane] = _read(stream, (first + lane) * packed.shape[1], column * word_bits, word_bits)
            _split(words, q, work)
            for lane in range(LANES):
                work[_FACTOR + lane] = multipliers[min(np.int64(work[_FACTOR + lane]), last)]
            _decode(work, side)
            for i in range(8):
                work[_TOKEN + i] = x[8 * column + i]
            _add(work)
        for lane in range(count):
            y[first + lane] = work[_SUMS + lane]


@njit(**OPTIONS)
def dot_rows_on_team(fixed, first, items, step, threads, team):  # type: ignore[no-untyped-def]
    """`dot_rows` on several threads, see `cpu_team.share`."""
    spread(dot_rows, fixed, first, items, step, threads, team)


@njit(**OPTIONS)
def _add(work):  # type: ignore[no-untyped-def]
    for lane in range(LANES):
        total = work[_SUMS + lane]
        for i in range(8):
            total += work[_TOKEN + i] * work[i * LANES + lane]
        work[_SUMS + lane] = total


def rotated_product(x: Tensor, seed: int, v: Tensor, row_scale: Tensor) -> Tensor:
    """diag(row_scale)·V·R x for a few tokens: `contract.products.rotated_product`."""
    rows, order = v.shape
    plan = plan_of(order, seed)
    assert plan is not None, "no pass rotates this order"
    narrow = x.dtype == torch.bfloat16
    out = torch.empty(x.shape[0], rows, dtype=torch.bfloat16 if narrow else torch.float32)
    scales = row_scale.view(torch.uint16).numpy()
    share(_rotate_and_dot, (*sides(x), plan, v.numpy(), scales, *sides(out)), rows, order // BLOCK)
    return out if narrow else out.to(x.dtype)


@njit(**OPTIONS)
def _rotate_and_dot(fixed, first, items, step, threads, team):  # type: ignore[no-untyped-def]
    wide, narrow, plan, v, scales, out, out_narrow = fixed
    tokens = max(wide.shape[0], narrow.shape[0])
    x = np.empty((tokens, v.shape[1]), np.float32)
    cpu_tokens.rotate(wide, narrow, plan, x, np.empty((0, 0), np.uint16), 0, tokens)
    spread(_dot_int8, (x, v, scales, out, out_narrow), first, items, step, threads, team)


# Sums may be taken in any order, which lets them stay in the lanes of a vector.
@njit(**{**OPTIONS, "fastmath": {"contract", "reassoc", "nsz"}})
def _dot_int8(x, v, scales, out, out_narrow, start, stop):  # type: ignore[no-untyped-def]
    """The rows start … stop of the product; scales are the bits of bfloat16, outputs as in `cpu_tokens.rotate`."""
    bits = np.empty(2, np.int32)
    numbers = bits.view(np.float32)
    for row in range(start, stop):
        weights = v[row]
        bits[0] = np.int32(scales[row]) << 16
        for token in range(x.shape[0]):
            values = x[token]
            total = ZERO
            for i in range(values.shape[0]):
                total += np.float32(weights[i]) * values[i]
            numbers[1] = total * numbers[0]
            if out.shape[0]:
                out[token, row] = numbers[1]
            else:
                out_narrow[token, row] = rounded(bits[1])
