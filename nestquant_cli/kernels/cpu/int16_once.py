"""A few tokens multiplied with int8 rows in one call. Compiled by Numba.

Tokens of bfloat16 are rotated and rounded to 16 bits first; int8 ones are taken as they are. Sums are exact, so that
products are those of the steps by themselves, to the bit, for any number of tokens together.
"""

import numpy as np
from numba import carray

from .after_product import finished, rounded
from .amx import ROWS, STEP, TOKENS
from .dot_int16 import DIGITS, MOST, TOGETHER, dot_few
from .e8 import OPTIONS
from .instructions import AMX
from .int16 import round_few, round_rotated
from .int16_product import multiply_blocks
from .jit import njit
from .pointers import float32_at, int8_at, int32_at, uint16_at
from .threads import spread

_BASE = np.float32(256)
_WHOLE = STEP * TOKENS // 4  # words of a tile and digit: those of STEP coordinates


@njit(**OPTIONS)
def rotate_and_multiply(fixed, first, items, step, threads, team):
    """Fills y (tokens, rows) bfloat16; takes what `on_team` of a loop takes, with blocks of 32 rows as items.

    Args:
        fixed: address of the tokens (tokens, features) bfloat16, one after another; tokens, features, rows and entries
            of a row; plan as in `tokens.rotate`; addresses of the int8 rows and of their scales, the bits of bfloat16;
            the instructions, of `instructions` and not the plain ones; address of y.
        first, items, step, threads, team: of `threads.spread`.
    """
    x, sizes, plan, weight, kind, y = fixed
    tokens, features, rows, order = sizes
    narrow, out = carray(uint16_at(x), (tokens, features)), carray(uint16_at(y), (tokens, rows))
    steps = (order + STEP - 1) // STEP
    scale = np.empty(tokens, np.float32)
    share = (first, items, step, threads, team)
    if tokens <= MOST:
        few = np.empty((tokens, DIGITS, steps * (STEP // 4)), np.int32)
        round_few(narrow, plan, few, scale)
        _share_few(few, scale, _more((0, 0, 0), tokens, rows), weight, order, out, share)
        return
    digits = np.empty(((tokens + TOKENS - 1) // TOKENS, DIGITS, steps * _WHOLE), np.int32)
    round_rotated(np.empty((0, 0), np.float32), narrow, plan, digits, scale, 0, tokens)
    _share_many(digits, scale, _more((0, 0, 0), tokens, rows), weight, order, kind, out, share)


@njit(**OPTIONS)
def multiply_integers(fixed, first, items, step, threads, team):
    """Fills y (tokens, rows) bfloat16 with ((Σ v·token)·scale of the token + centered·shift)·scale of the row + bias.

    Args:
        fixed: addresses of int8 tokens (tokens, entries) and of their scales, float32; addresses of centered (tokens,)
            bool, shift and bias (rows,) float32, or zeros; tokens, rows and entries; the rest as in
            `rotate_and_multiply`. Tokens are their own lower digit.
        first, items, step, threads, team: as there.
    """
    v, scales, further, sizes, weight, kind, y = fixed
    tokens, rows, order = sizes
    out, scale = carray(uint16_at(y), (tokens, rows)), carray(float32_at(scales), (tokens,))
    words = carray(int32_at(v), (tokens, order // 4))
    groups = (order + STEP - 1) // STEP * (STEP // 4)
    more = _more(further, tokens, rows)
    share = (first, items, step, threads, team)
    if tokens <= MOST:
        few = np.zeros((tokens, DIGITS, groups), np.int32)
        few[:, 1, : order // 4] = words
        _share_few(few, scale, more, weight, order, out, share)
        return
    count = 1 if kind == AMX else DIGITS
    digits = np.zeros(((tokens + TOKENS - 1) // TOKENS, count, groups * TOKENS), np.int32)
    for token in range(tokens):
        line = digits[token // TOKENS, count - 1]
        for group in range(order // 4):
            line[group * TOKENS + token % TOKENS] = words[token, group]
    _share_many(digits, scale, more, weight, order, kind, out, share)


@njit(**OPTIONS)
def _more(further, tokens, rows):
    """What `multiply_blocks` takes of centers and biases, from addresses or zeros."""
    if further[0] == 0 and further[1] == 0 and further[2] == 0:
        return _none(0), _none(0), _none(0)
    centered, shift, bias = _none(tokens), _none(rows), _none(rows)
    if further[0] != 0:
        centered[:] = carray(int8_at(further[0]), (tokens,))
        shift[:] = carray(float32_at(further[1]), (rows,))
    if further[2] != 0:
        bias[:] = carray(float32_at(further[2]), (rows,))
    return centered, shift, bias


@njit(**OPTIONS)
def _none(count):
    return np.zeros(count, np.float32)


@njit(**OPTIONS)
def _share_few(digits, scale, more, weight, order, out, share):
    first, items, step, threads, team = share
    fixed = (digits, _offsets(digits), scale, more, weight, out.shape[1], order, out)
    spread(_few, fixed, first, items, step, threads, team)


@njit(**OPTIONS)
def _share_many(digits, scale, more, weight, order, kind, out, share):
    first, items, step, threads, team = share
    tiles, tokens = digits.shape[0], scale.shape[0]
    first_of = np.empty(tiles + 1, np.int64)
    for tile in range(tiles):
        first_of[tile] = tile * TOKENS
    first_of[tiles] = tokens
    ends = np.array([0, tiles], np.int64)
    addresses = np.array([[weight[0], weight[1]]], np.int64)
    wide = np.empty((0, 0), np.float32)
    fixed = (digits, scale, more, first_of, ends, addresses, out.shape[1], order, kind, wide, out)
    spread(multiply_blocks, fixed, first, items, step, threads, team)


@njit(**OPTIONS)
def _few(digits, offsets, scale, more, weight, rows, order, out, start, stop):
    """The blocks of rows start … stop for at most MOST tokens."""
    tokens = digits.shape[0]
    length = 4 * digits.shape[2]
    together = TOGETHER[tokens]
    scales = carray(uint16_at(weight[1]), (rows,))
    sums = np.empty((ROWS, MOST, DIGITS), np.int32).reshape(-1)
    bits = np.empty(2, np.int32)
    numbers = bits.view(np.float32)
    last = min(stop * ROWS, rows)
    for first in range(start * ROWS, last, together):
        place = min(first, max(rows - together, 0))  # the last rows are taken with some before them
        count = min(together, rows)
        address = weight[0] + place * order
        if count < together:
            _plain(address, order, count, digits, sums)
        elif tokens == 1:
            dot_few(address, order, order, digits.ctypes.data, length, sums.ctypes.data, 1)
        elif tokens == 2:
            dot_few(address, order, order, digits.ctypes.data, length, sums.ctypes.data, 2)
        elif tokens == 3:
            dot_few(address, order, order, digits.ctypes.data, length, sums.ctypes.data, 3)
        else:
            dot_few(address, order, order, digits.ctypes.data, length, sums.ctypes.data, 4)
        for i in range(count):
            bits[0] = np.int32(scales[place + i]) << 16
            for token in range(tokens):
                at = (i * tokens + token) * DIGITS
                high = np.float32(sums[at] - offsets[token, 0])
                low = np.float32(sums[at + 1] - offsets[token, 1])
                if more[1].shape[0]:
                    shift = more[0][token] * more[1][place + i]
                    numbers[1] = finished(high * _BASE + low, scale[token], shift, numbers[0], more[2][place + i])
                else:
                    numbers[1] = (high * _BASE + low) * scale[token] * numbers[0]
                out[token, place + i] = rounded(bits[1])


@njit(**OPTIONS)
def _offsets(digits):
    """128 · Σ of each token's digits, (tokens, DIGITS) int32."""
    found = np.zeros((digits.shape[0], DIGITS), np.int32)
    for token in range(digits.shape[0]):
        for digit in range(DIGITS):
            line = carray(int8_at(digits[token, digit].ctypes.data), (4 * digits.shape[2],))
            total = np.int32(0)
            for i in range(line.shape[0]):
                total += np.int32(line[i])
            found[token, digit] = total << 7
    return found


@njit(**OPTIONS)
def _plain(address, order, count, digits, sums):
    """As `dot_few`, of a matrix with fewer rows than that takes."""
    for row in range(count):
        weights = carray(int8_at(address + row * order), (order,))
        for token in range(digits.shape[0]):
            for digit in range(DIGITS):
                line = carray(int8_at(digits[token, digit].ctypes.data), (4 * digits.shape[2],))
                total = np.int32(0)
                for i in range(order):
                    total += (np.int32(weights[i]) + np.int32(128)) * np.int32(line[i])
                sums[(row * digits.shape[0] + token) * DIGITS + digit] = total
