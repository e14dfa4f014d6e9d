"""Tokens rotated and rounded to integers in one pass over memory, each on a grid of its own. Compiled by Numba."""

import numpy as np

from .after_product import rounded
from .e8 import LANE, ONE, OPTIONS
from .int16 import largest_of_row, largest_of_tile
from .jit import njit
from .rotate import FEW, TOKENS, WORK
from .threads import team_loop
from .tile_rows import store_rows
from .tokens import load_rotated, rotate_one

_MAGIC = np.float32(12582912.0)  # 1.5·2²³: what is added to it is rounded to an integer, found in the lowest bits
_INFINITE = np.int32(0x7F800000)  # those of infinity; what is no number has larger ones
_NOT_A_NUMBER = np.float32(np.nan)


@team_loop
def encode(wide, narrow, plan, clip, most, v, scale, start, stop):
    """Rotates the tokens start … stop and rounds each to multiples of its scale, −most − 1 … most of them.

    Args:
        wide, narrow, plan: as in `tokens.rotate`; the order is a multiple of 8.
        clip: reach of a grid as a fraction of the token's largest magnitude, float32.
        most: the largest integer, float32.
        v: (tokens, order/4) int32, the bytes of int8 entries.
        scale: (tokens,) float32, filled; 1 for a token of zeros, not a number for one that is not finite.
    """
    order = plan[0].shape[0]
    work = np.zeros(WORK, np.float32)
    if stop - start <= FEW:
        row, other = np.empty(order, np.float32), np.empty(order, np.float32)
        for token in range(start, stop):
            rotate_one(wide, narrow, token, plan, row, work, other)
            scale[token] = _step(largest_of_row(row.view(np.int32)), clip, most)
            _words_of_row(row, scale[token], most, v[token])
        return
    tile = np.empty(order * TOKENS, np.float32)
    words = np.empty(order // 4 * TOKENS, np.int32)
    largest = np.empty(TOKENS, np.int32)
    step = np.empty(TOKENS, np.float32)
    places = np.zeros(TOKENS, np.int64)
    for first in range(start, stop, TOKENS):
        count = min(TOKENS, stop - first)
        load_rotated(wide, narrow, first, count, plan, tile, work)
        largest_of_tile(tile.ctypes.data, order, largest.ctypes.data)
        for lane in range(TOKENS):
            step[lane] = _step(largest[lane], clip, most)
        for lane in range(count):
            scale[first + lane] = step[lane]
            places[lane] = v.ctypes.data + (first + lane) * v.strides[0]
        _words(tile, step, most, words)
        store_rows(words.view(np.float32), places, count, False, order // 4)


@njit(**OPTIONS)
def _step(largest, clip, most):
    """The scale of a token whose largest magnitude has these bits, a bfloat16."""
    if largest >= _INFINITE:
        return _NOT_A_NUMBER
    one = np.empty(1, np.float32)
    bits = one.view(np.int32)
    bits[0] = largest
    one[0] = one[0] * clip / most
    bits[0] = np.int32(rounded(bits[0])) << 16
    return ONE if bits[0] == 0 else one[0]


@njit(**LANE)
def _byte(value, scale, most):
    """The integer nearest to value / scale, −most − 1 … most, in the lowest byte of a float32's bits."""
    steps = value / scale
    steps = steps if steps < most else most
    return (steps if steps > -most - ONE else -most - ONE) + _MAGIC


@njit(**OPTIONS)
def _words(tile, step, most, words):
    """Four entries of each token to a word: words (order/4 · TOKENS,) int32, lanes as in the tile."""
    line = np.empty(8 * TOKENS, np.float32)
    bits = line.view(np.int32)
    for i in range(0, tile.shape[0], 8 * TOKENS):
        part, target = tile[i : i + 8 * TOKENS], words[i // 4 : i // 4 + 2 * TOKENS]
        for lane in range(TOKENS):
            for j in range(8):
                line[j * TOKENS + lane] = _byte(part[j * TOKENS + lane], step[lane], most)
        for lane in range(TOKENS):
            for j in range(2):
                at = 4 * j * TOKENS + lane
                low = (bits[at] & 255) | (bits[at + TOKENS] & 255) << 8
                high = (bits[at + 2 * TOKENS] & 255) | (bits[at + 3 * TOKENS] & 255) << 8
                target[j * TOKENS + lane] = np.int32(low | high << 16)


@njit(**OPTIONS)
def _words_of_row(row, scale, most, words):
    for i in range(row.shape[0]):
        row[i] = _byte(row[i], scale, most)
    bits = row.view(np.int32)
    for i in range(words.shape[0]):
        low = (bits[4 * i] & 255) | (bits[4 * i + 1] & 255) << 8
        high = (bits[4 * i + 2] & 255) | (bits[4 * i + 3] & 255) << 8
        words[i] = np.int32(low | high << 16)
