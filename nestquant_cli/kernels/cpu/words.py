"""Reading words: loops over tiles of blocks, lanes of a tile in vector units. Compiled by Numba."""

import numpy as np

from . import digits
from .digits import MOST_BITS, decode_in_bytes, decode_to_int8
from .e8 import HALF, LANE, LANES, ONE, OPTIONS, TWO, representative
from .encode import store
from .jit import njit
from .points import MOST_SIDE
from .threads import team_loop

FACTOR = 8 * LANES  # rows of a tile after the eight entries: the multiplier
_PAIRS = 9 * LANES  # four rows: digits taken two at a time, in base q²
WORK = 13 * LANES
_INVERSE, _UPPER, _SHIFT = digits.INVERSE, digits.FACTOR, digits.SHIFT


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
    stream = packed.reshape(packed.size)
    narrow = q <= MOST_SIDE and word_bits <= MOST_BITS and not wide
    table, k = multipliers.ctypes.data, multipliers.shape[0]
    for first in range(start, stop, LANES):
        count = min(LANES, stop - first)
        whole = narrow and count == LANES
        target = v.ctypes.data + 8 * first if whole else out.ctypes.data
        if whole and word_bits == MOST_BITS:  # as whole rows are whole words, all words lie one after another
            at = stream.ctypes.data + 4 * first
            decode_to_int8(at, 4, q, _INVERSE[q], _UPPER[q], _SHIFT[q], table, k, target)
            continue
        _read_words(packed, stream, width, word_bits, first, count, words)
        if narrow:
            at = words.ctypes.data
            decode_to_int8(at, 8, q, _INVERSE[q], _UPPER[q], _SHIFT[q], table, k, target)
            for i in range(0 if whole else 2 * count):
                v[2 * first + i] = out[i]
        else:
            _decode_words(words, word_bits, q, multipliers, work)
            store(work, 0, first, count, out, v, wide)


@njit(**OPTIONS)
def _read_words(packed, stream, width, word_bits, first, count, words):
    """The words of `count` blocks from `first` on, of rows of `width` blocks."""
    row = first // width
    column = first - row * width
    for lane in range(count):
        words[lane] = read_word(stream, row * packed.shape[1], column * word_bits, word_bits)
        column += 1
        if column == width:
            row += 1
            column = 0


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
    # Unsigned places need no look at their sign, so that eight bytes become one load.
    place = np.uint64(begin + (position >> 3))
    shift = position & 7
    word = np.uint64(0)
    if place + np.uint64(8) <= np.uint64(packed.shape[0]):
        for i in range(8):
            word |= np.uint64(packed[place + np.uint64(i)]) << np.uint64(8 * i)
    else:
        for i in range(packed.shape[0] - np.int64(place)):
            word |= np.uint64(packed[place + np.uint64(i)]) << np.uint64(8 * i)
    word >>= np.uint64(shift)
    if shift + word_bits > 64:
        word |= np.uint64(packed[place + np.uint64(8)]) << np.uint64(64 - shift)
    return word & (~np.uint64(0) >> np.uint64(64 - word_bits))


@njit(**OPTIONS)
def decode_lanes(stream, begin, stride, count, column, word_bits, q, multipliers, words, work):
    """Decodes word `column` of `count` rows into the first eight rows of `work`.

    Args:
        stream: flat uint8.
        begin: the first byte of the first row.
        stride: bytes from a row to the next.
        count, column, word_bits, q: integers, count at most LANES.
        multipliers: (k,) float32.
        words: (LANES,) uint64, scratch.
        work: (WORK,) float32; lanes from `count` on are filled with something in range.
    """
    if word_bits == MOST_BITS and q <= MOST_SIDE and count == LANES:
        at, table, k = stream.ctypes.data + begin + 4 * column, multipliers.ctypes.data, multipliers.shape[0]
        decode_in_bytes(at, stride, q, _INVERSE[q], _UPPER[q], _SHIFT[q], table, k, work.ctypes.data)
        return
    for lane in range(count):
        words[lane] = read_word(stream, begin + lane * stride, column * word_bits, word_bits)
    _decode_words(words, word_bits, q, multipliers, work)


@njit(**OPTIONS)
def _decode_words(words, word_bits, q, multipliers, work):
    if q <= MOST_SIDE and word_bits <= MOST_BITS:
        at, table, k = words.ctypes.data, multipliers.ctypes.data, multipliers.shape[0]
        decode_in_bytes(at, 8, q, _INVERSE[q], _UPPER[q], _SHIFT[q], table, k, work.ctypes.data)
        return
    _split_words(words, q, work)
    last = multipliers.shape[0] - 1
    for lane in range(LANES):
        work[FACTOR + lane] = multipliers[min(np.int64(work[FACTOR + lane]), last)]
    _decode_pairs(work, np.float32(q))


@njit(**OPTIONS)
def _split_words(words, q, work):
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
def _decode_pairs(work, q):
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
