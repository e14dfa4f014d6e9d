"""Head vectors on the CPU: rotated, coded and decoded a tile at a time. Compiled by Numba."""

import numpy as np

from .center import add_own, subtract_own
from .e8 import LANES, ONE, OPTIONS, ZERO
from .encode import quantize
from .jit import njit
from .pack import pack
from .rotate_heads import rotate_tile
from .threads import team_loop
from .words import WORK, decode_lanes

_SIGN = 128  # of a scale, in its upper byte: says that a center was subtracted


@team_loop
def encode(x, centers, run, diagonal, steps, matrices, unit, fixed, y, factors, v, choices, packed, start, stop):
    """Rotates, codes and packs the vectors start … stop.

    Args:
        x: (rows, n) float32.
        centers, run: of the heads, as in `center.subtract_own`; or none.
        diagonal, steps, matrices: as in `rotate_heads.Turn`, forward.
        unit: float32, the size of v = 1 of a vector with root mean square 1.
        fixed: multipliers (k,) float32, q and limit float32, q and word_bits integers.
        y: (rows, n) float32, filled with the rotated vectors.
        factors: (rows,) float32, filled with 1/scale.
        v: the flat integers twice, as their bytes in int32 and as int8 or int16; filled.
        choices: (rows·n/8,) uint8, filled with the indices of the multipliers.
        packed: (rows, bytes) uint8, filled.
    """
    multipliers, side, limit, q, word_bits = fixed
    rows_of_bytes, values = v
    n = x.shape[1]
    width = n // 8
    tile = np.zeros(2 * n * LANES, np.float32)
    square = np.empty(LANES, np.float32)
    lines = np.empty((LANES, n), np.float32)
    marks = np.zeros(stop - start, np.bool_)
    for first in range(start, stop, LANES):
        count = min(LANES, stop - first)
        if centers.shape[0]:
            subtract_own(x, centers, run, first, count, lines, marks[first - start :])
            load_lanes(lines, diagonal, 0, count, tile)
        else:
            load_lanes(x, diagonal, first, count, tile)
        rotate_tile(tile, steps, matrices)
        square[:] = ZERO
        for j in range(n):
            for lane in range(LANES):
                square[lane] += tile[j * LANES + lane] * tile[j * LANES + lane]
        for lane in range(count):
            square[lane] = np.sqrt(square[lane] / np.float32(n)) * unit
            factors[first + lane] = square[lane] if square[lane] > ZERO else ONE
            for j in range(n):
                y[first + lane, j] = tile[j * LANES + lane]
    halves = _round_scales(factors, start, stop)
    whole = y.reshape(y.size)
    wide = values.itemsize == 2
    quantize(whole, factors, width, multipliers, side, limit, rows_of_bytes, wide, choices, start * width, stop * width)
    last = multipliers.shape[0] - 1
    for block in range(start * width, stop * width):
        choices[block] = min(choices[block], last)
    pack(values, choices, width, multipliers, q, word_bits, packed, start, stop)
    at = packed.shape[1] - 2
    for row in range(start, stop):
        packed[row, at] = halves[row - start] & 255
        packed[row, at + 1] = (halves[row - start] >> 8) | (_SIGN if marks[row - start] else 0)


@njit(**OPTIONS)
def load_lanes(x, diagonal, first, count, tile):
    """Fills `count` lanes of a tile with vectors multiplied by the diagonal."""
    for lane in range(count):
        for j in range(x.shape[1]):
            tile[j * LANES + lane] = np.float32(x[first + lane, j]) * diagonal[j]


@njit(**OPTIONS)
def _round_scales(factors, start, stop):
    """Rounds scales to bfloat16, replaces them by their inverses and returns their upper halves."""
    scales = factors[start:stop].copy()
    bits = scales.view(np.uint32)
    halves = np.empty(stop - start, np.uint32)
    for i in range(stop - start):
        half = (bits[i] + np.uint32(0x7FFF) + ((bits[i] >> 16) & np.uint32(1))) >> 16
        halves[i] = half if half > 0 else np.uint32(0x3F80)  # what rounds to zero is coded as zeros times 1
        bits[i] = np.uint32(halves[i]) << 16
    for i in range(stop - start):
        factors[start + i] = ONE / scales[i]
    return halves


@team_loop
def decode(packed, fixed, centers, run, diagonal, steps, matrices, out, start, stop):
    """Decodes and un-rotates the vectors start … stop.

    Args:
        packed: (rows, bytes) uint8.
        fixed, centers, run: as for `encode`.
        diagonal, steps, matrices: as in `rotate_heads.Turn`, backward.
        out: (rows, n) float32, filled.
    """
    n = out.shape[1]
    size = packed.shape[1]
    stream = packed.reshape(packed.size)
    tile = np.zeros(2 * n * LANES, np.float32)
    work = np.zeros(WORK, np.float32)
    words = np.zeros(LANES, np.uint64)
    scales = np.empty(LANES, np.float32)
    for first in range(start, stop, LANES):
        count = min(LANES, stop - first)
        for column in range(n // 8):
            decode_column(stream, first * size, size, count, column, fixed, words, work)
            for i in range(8 * LANES):
                tile[8 * column * LANES + i] = work[i]
        rotate_tile(tile, steps, matrices)
        read_scales(stream, first * size, size, count, scales)
        store_lanes(tile, scales, diagonal, first, count, out)
        add_own(scales, centers, run, first, count, out)


@team_loop
def restore(v, packed, centers, run, diagonal, steps, matrices, out, start, stop):
    """What `decode` makes of `packed` where its integers v (rows, n) are still at hand."""
    n = out.shape[1]
    size = packed.shape[1]
    stream = packed.reshape(packed.size)
    tile = np.zeros(2 * n * LANES, np.float32)
    ones = np.ones(n, np.float32)
    scales = np.empty(LANES, np.float32)
    for first in range(start, stop, LANES):
        count = min(LANES, stop - first)
        load_lanes(v, ones, first, count, tile)
        rotate_tile(tile, steps, matrices)
        read_scales(stream, first * size, size, count, scales)
        store_lanes(tile, scales, diagonal, first, count, out)
        add_own(scales, centers, run, first, count, out)


@njit(**OPTIONS)
def store_lanes(tile, scales, diagonal, first, count, out):
    """Writes `count` lanes of a tile to `out`, times the size of their scale and diagonal."""
    for lane in range(count):
        scale = np.abs(scales[lane])
        for j in range(out.shape[1]):
            factor = scale * diagonal[j]
            out[first + lane, j] = tile[j * LANES + lane] * factor


@njit(**OPTIONS)
def read_scales(stream, begin, stride, count, scales):
    """Scales of `count` vectors of `stride` bytes from `begin` on, negative with a center; zero in the lanes left."""
    bits = scales.view(np.uint32)
    bits[:] = np.uint32(0)
    for lane in range(count):
        at = begin + (lane + 1) * stride - 2
        bits[lane] = (np.uint32(stream[at]) << 16) | (np.uint32(stream[at + 1]) << 24)


@njit(**OPTIONS)
def decode_column(stream, begin, stride, count, column, fixed, words, work):
    """Decodes block `column` of `count` vectors of `stride` bytes from `begin` on into the first rows of `work`."""
    multipliers, _, _, q, word_bits = fixed
    decode_lanes(stream, begin, stride, count, column, word_bits, q, multipliers, words, work)
