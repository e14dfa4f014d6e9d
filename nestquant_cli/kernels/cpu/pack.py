"""Packing integers into words: loops over tiles of blocks, lanes of a tile in vector units. Compiled by Numba."""

import numpy as np

from .e8 import HALF, LANE, LANES, ONE, OPTIONS
from .jit import njit
from .threads import team_loop
from .words import FACTOR, WORK

_QUARTER = np.float32(0.25)


@team_loop
def pack(v, index, width, multipliers, q, word_bits, packed, start, stop):
    """Writes the words of rows start … stop.

    Args:
        v: (8·blocks,) int8 or int16, rows one after another.
        index: (blocks,) uint8.
        width: blocks of a row.
        multipliers: (k,) float32.
        q, word_bits: integers.
        packed: (rows, row_bytes) uint8.
    """
    work = np.zeros(WORK, np.float32)
    words = np.zeros(LANES, np.uint64)
    four = np.uint64(q) * np.uint64(q) * np.uint64(q) * np.uint64(q)
    last = multipliers.shape[0] - 1
    row = start
    column = 0
    pending = np.uint64(0)  # bits of the row that do not fill a byte yet
    for first in range(start * width, stop * width, LANES):
        count = min(LANES, stop * width - first)
        for lane in range(count):
            work[FACTOR + lane] = ONE / multipliers[min(np.int64(index[first + lane]), last)]
            for i in range(8):
                work[i * LANES + lane] = np.float32(v[8 * (first + lane) + i])
        _join(work, np.float32(q), words)
        for lane in range(count):
            word = words[lane] + four * four * np.uint64(index[first + lane])
            pending = _write(packed, row, column * word_bits, word_bits, word, pending)
            column += 1
            if column == width:
                row += 1
                column = 0
                pending = np.uint64(0)


@njit(**OPTIONS)
def _join(work, q, words):
    """The inverse of `words.decode_lanes` on v and 1/multiplier, for multiplier index 0."""
    square = np.int64(q * q)
    inverse = ONE / q
    for lane in range(LANES):
        for i in range(8):
            work[i * LANES + lane] = np.floor(work[i * LANES + lane] * work[FACTOR + lane] + HALF)
        last = work[7 * LANES + lane]
        work[6 * LANES + lane] = HALF * (work[6 * LANES + lane] - last)
        for i in range(5, 0, -1):
            work[i * LANES + lane] = HALF * (work[i * LANES + lane] - last) + work[(i + 1) * LANES + lane]
        work[lane] = _QUARTER * (work[lane] - last) + HALF * work[LANES + lane]
        for i in range(8):
            digit = work[i * LANES + lane]
            work[i * LANES + lane] = digit - q * np.floor((digit + HALF) * inverse)
        word = np.int64(0)
        for i in range(6, -1, -2):
            word = word * square + np.int64(work[i * LANES + lane] + q * work[(i + 1) * LANES + lane])
        words[lane] = np.uint64(word)


@njit(**LANE)
def _write(packed, row, position, word_bits, word, pending):
    """Writes the bytes that `word` completes and the one it begins; returns the bits of the latter."""
    place = position >> 3
    shift = position & 7
    bits = shift + word_bits
    low = pending | (word << np.uint64(shift))
    if place + 8 <= packed.shape[1]:
        for i in range(8):  # compiles to one store; what it writes too much, the next words overwrite
            packed[row, place + i] = np.uint8((low >> np.uint64(8 * i)) & 255)
    else:
        for i in range(packed.shape[1] - place):
            packed[row, place + i] = np.uint8((low >> np.uint64(8 * i)) & 255)
    if bits < 64:
        return low >> np.uint64(bits & ~7)
    high = (word >> np.uint64(1)) >> np.uint64(63 - shift)
    if bits > 64:
        packed[row, place + 8] = np.uint8(high & 255)
    return high
