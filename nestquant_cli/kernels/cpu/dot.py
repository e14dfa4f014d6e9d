"""Loops of the products with a few tokens: packed words decoded on the way, and int8 rows. Compiled by Numba.

Lanes are rows of the matrix, so that sums stay in their lanes and a coordinate of the token is a scalar.
"""

import numpy as np

from .after_product import rounded
from .e8 import LANES, OPTIONS, ZERO
from .jit import njit
from .threads import spread, team_loop
from .tokens import rotate
from .words import WORK, decode_lanes

_TOKEN = WORK  # after the rows of the decoder: the eight coordinates that meet the block, then the sums
_SUMS = WORK + LANES


@team_loop
def dot_rows(packed, word_bits, q, multipliers, x, y, start, stop):
    """Fills y (rows,) float32 for the rows start … stop; the arguments are those of `product.dot`."""
    work = np.zeros(_SUMS + LANES, np.float32)
    words = np.zeros(LANES, np.uint64)
    stream = packed.reshape(packed.size)
    for first in range(start, stop, LANES):
        count = min(LANES, stop - first)
        for lane in range(LANES):
            work[_SUMS + lane] = ZERO
        for column in range(x.shape[0] // 8):
            begin, stride = first * packed.shape[1], packed.shape[1]
            decode_lanes(stream, begin, stride, count, column, word_bits, q, multipliers, words, work)
            for i in range(8):
                work[_TOKEN + i] = x[8 * column + i]
            _add(work)
        for lane in range(count):
            y[first + lane] = work[_SUMS + lane]


@njit(**OPTIONS)
def _add(work):
    for lane in range(LANES):
        total = work[_SUMS + lane]
        for i in range(8):
            total += work[_TOKEN + i] * work[i * LANES + lane]
        work[_SUMS + lane] = total


@njit(**OPTIONS)
def rotate_and_dot(fixed, first, items, step, threads, team):
    """Rotates the tokens and multiplies int8 rows with them, in one call; takes what `on_team` of a loop takes."""
    wide, narrow, plan, v, scales, out, out_narrow = fixed
    tokens = max(wide.shape[0], narrow.shape[0])
    x = np.empty((tokens, v.shape[1]), np.float32)
    rotate(wide, narrow, plan, x, np.empty((0, 0), np.uint16), 0, tokens)
    spread(_dot_int8, (x, v, scales, out, out_narrow), first, items, step, threads, team)


# Sums may be taken in any order, which lets them stay in the lanes of a vector.
@njit(**{**OPTIONS, "fastmath": {"contract", "reassoc", "nsz"}})
def _dot_int8(x, v, scales, out, out_narrow, start, stop):
    """The rows start … stop of the product; scales are the bits of bfloat16, outputs as in `tokens.rotate`."""
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
