"""Packing and unpacking words: loops over tiles of blocks, lanes of a tile in vector units. Compiled by Numba."""

import numpy as np

from .e8 import HALF, LANE, LANES, ONE, OPTIONS, TWO, representative
from .encode import store
from .jit import njit
from .threads import team_loop

_QUARTER = np.float32(0.25)
FACTOR = 8 * LANES  # rows of a tile after the eight entries: the multiplier
_PAIRS = 9 * LANES  # four rows: digits taken two at a time, in base q²
WORK = 13 * LANES


@team_loop
def unpack(packed, width, word_bits, q, multipliers, v, wide, start, stop):
    """Decodes the blocks start … stop.

    Args:
        packed: (rows, row_bytes) uint8.
        width: blocks of a row.
        word_bits, q: integers.
        multipliers: (k,) float32.
        v: (2·blocks,) or (4·blocks,) int32, the bytes of int8 or, if `wide`, int16 entries.
    """
    work = np.zeros(WORK, np.float32)
    words = np.zeros(LANES, np.uint64)
    out = np.empty(4 * LANES, np.int32)
    row_bytes = packed.shape[1]
    stream = packed.reshape(packed.size)
    row = start // width
    column = start - row * width
    side = np.float32(q)
    for first in range(start, stop, LANES):
        count = min(LANES, stop - first)
        for lane in range(count):
            words[lane] = read_word(stream, row * row_bytes, column * word_bits, word_bits)
            column += 1
            if column == width:
                row += 1
                column = 0
        split_words(words, q, work)
        last = multipliers.shape[0] - 1
        for lane in range(LANES):
            work[FACTOR + lane] = multipliers[min(np.int64(work[FACTOR + lane]), last)]
        decode_pairs(work, side)
        store(work, 0, first, count, out, v, wide)


@team_loop
def indices(packed, word_bits, size, k, index, start, stop):
    """Fills index (rows, blocks) uint8 of rows start … stop: word div size, at most k − 1; size is q⁸ as uint64."""
    stream = packed.reshape(packed.size)
    for row in range(start, stop):
        for column in range(index.shape[1]):
            word = read_word(stream, row * packed.shape[1], column * word_bits, word_bits)
            index[row, column] = np.uint8(min(np.int64(word // size), k - 1))


@njit(**LANE)
def read_word(packed, begin, position, word_bits):
    """The word_bits bits at bit `position` of the row that begins at byte `begin`, as uint64."""
    place = begin + (position >> 3)
    shift = position & 7
    word = np.uint64(0)
    if place + 8 <= packed.shape[0]:
        for i in range(8):  # compiles to one load
            word |= np.uint64(packed[place + i]) << np.uint64(8 * i)
    else:
        for i in range(packed.shape[0] - place):
            word |= np.uint64(packed[place + i]) << np.uint64(8 * i)
    word >>= np.uint64(shift)
    if shift + word_bits > 64:
        word |= np.uint64(packed[place + 8]) << np.uint64(64 - shift)
    return word & (~np.uint64(0) >> np.uint64(64 - word_bits))


@njit(**OPTIONS)
def split_words(words, q, work):
    """Words to multiplier index (in the row of the factors) and four pairs of digits."""
    square = np.int64(q) * np.int64(q)
    four = square * square
    for lane in range(LANES):
        rest, low = _divide(words[lane], four)
        index, high = _divide(np.uint64(rest), four)
        work[FACTOR + lane] = np.float32(min(index, 255))
        for j, half in ((0, low), (1, high)):
            upper = np.floor((half + 0.5) / square)
            work[_PAIRS + 2 * j * LANES + lane] = np.float32(half - upper * square)
            work[_PAIRS + (2 * j + 1) * LANES + lane] = np.float32(upper)


@njit(**LANE)
def _divide(word, divisor):
    """Quotient (int64) and remainder (float64) of a uint64, 16 ≤ divisor ≤ 2³².

    Vector units divide no integers. A quotient in float64 may be off; its remainder is small and is divided again.
    """
    inverse = 1.0 / divisor
    quotient = np.int64(np.floor(np.float64(word) * inverse))
    rest = np.int64(word) - quotient * divisor
    again = np.int64(np.floor((np.float64(rest) + 0.5) * inverse))
    return quotient + again, np.float64(rest - again * divisor)


@njit(**OPTIONS)
def decode_pairs(work, q):
    """Pairs of digits to decoded entries: the generator of e8.voronoi, the representative, the multiplier."""
    inverse = ONE / q
    for lane in range(LANES):
        for j in range(4):
            pair = work[_PAIRS + j * LANES + lane]
            upper = np.floor((pair + HALF) * inverse)
            work[2 * j * LANES + lane] = pair - upper * q
            work[(2 * j + 1) * LANES + lane] = upper
        last = work[7 * LANES + lane]
        work[lane] *= TWO
        for i in range(6):
            work[i * LANES + lane] = TWO * (work[i * LANES + lane] - work[(i + 1) * LANES + lane]) + last
        work[6 * LANES + lane] = TWO * work[6 * LANES + lane] + last
        representative(work, lane, q)
        for i in range(8):
            work[i * LANES + lane] *= work[FACTOR + lane]


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
    """The inverse of `decode_pairs` and `split_words` on v and 1/multiplier, for multiplier index 0."""
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
