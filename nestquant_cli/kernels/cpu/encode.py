"""Rounding blocks to codewords: loops over tiles of blocks, lanes of a tile in vector units. Compiled by Numba."""

import numpy as np

from ..contract.constants import CLIP_STEPS, OVERLOADED
from .e8 import HALF, INFINITY, LANES, ONE, OPTIONS, POINT, TWO, ZERO, nearest, odd
from .jit import njit
from .threads import team_loop

CHOSEN = 16 * LANES  # rows of the tile: blocks, their nearest points, the best points so far, error and index of those
_BEST = 24 * LANES
_INDEX = 25 * LANES
WORK = 26 * LANES


@team_loop
def quantize(x, factors, width, multipliers, q, limit, v, wide, index, start, stop):
    """Encodes the blocks start … stop.

    Args:
        x: (8·blocks,) float32, rows one after another.
        factors: (rows,) float32, 1/scale.
        width: blocks of a row.
        multipliers: (k,) float32.
        q, limit: float32.
        v: (2·blocks,) or (4·blocks,) int32, the bytes of int8 or, if `wide`, int16 entries.
        index: (blocks,) uint8; OVERLOADED for a block that no multiplier holds and that was clipped.
    """
    work = np.zeros(WORK, np.float32)
    spare = np.zeros(WORK, np.float32)
    words = np.empty(4 * LANES, np.int32)
    row = start // width
    column = start - row * width
    for first in range(start, stop, LANES):
        count = min(LANES, stop - first)
        for lane in range(count):
            work[_BEST + lane] = factors[row]
            column += 1
            if column == width:
                row += 1
                column = 0
        load(x, first, count, work)
        choose(work, multipliers, q, limit, spare)
        for lane in range(count):
            index[first + lane] = np.uint8(work[_INDEX + lane])
        store(work, CHOSEN, first, count, words, v, wide)


@njit(**OPTIONS)
def choose(work, multipliers, q, limit, spare):
    """The best point of each block of a tile to the rows CHOSEN, the index of its multiplier to the row _INDEX.

    Args:
        work: a tile with blocks in its first eight rows.
        multipliers, q, limit: as in `quantize`.
        spare: another tile, scratch.
    """
    for lane in range(LANES):
        work[_BEST + lane] = INFINITY
        work[_INDEX + lane] = np.float32(OVERLOADED)
    for i in range(multipliers.shape[0]):
        m = multipliers[i]
        _try(work, np.float32(i), m, q, np.floor(limit / m) + HALF)
    largest = ZERO
    for lane in range(LANES):
        mark = work[_INDEX + lane]
        largest = mark if mark > largest else largest
    if largest == np.float32(OVERLOADED):
        for lane in range(LANES):
            if work[_INDEX + lane] == np.float32(OVERLOADED):
                clip(work, lane, multipliers[multipliers.shape[0] - 1], q, limit, spare)


@njit(**OPTIONS)
def _try(work, mark, m, q, bound):
    """Takes the nearest points under the multiplier m, whose index is `mark`, where they beat the best so far."""
    for lane in range(LANES):
        error = nearest(work, lane, m, q, bound)
        old = work[_BEST + lane]
        better = error < old
        work[_BEST + lane] = error if better else old
        work[_INDEX + lane] = mark if better else work[_INDEX + lane]
        for i in range(8):
            place = i * LANES + lane
            work[CHOSEN + place] = work[POINT + place] if better else work[CHOSEN + place]


@njit(**OPTIONS)
def load(x, first, count, work):
    """Multiplies `count` blocks of flat x by what is in the row _BEST into the first eight rows of a tile."""
    part = x[8 * first : 8 * (first + count)]
    if count == LANES:  # a constant number of lanes compiles to vector instructions
        for lane in range(LANES):
            for i in range(8):
                work[i * LANES + lane] = part[8 * lane + i] * work[_BEST + lane]
    else:
        for lane in range(count):
            for i in range(8):
                work[i * LANES + lane] = part[8 * lane + i] * work[_BEST + lane]


@njit(**OPTIONS)
def store(work, at, first, count, words, v, wide):
    """Writes the integers in eight rows of a tile to flat v as int8 or int16, put together in int32 words."""
    if wide:
        for lane in range(LANES):
            for j in range(4):
                low = np.int32(work[at + 2 * j * LANES + lane]) & 65535
                words[4 * lane + j] = low | (np.int32(work[at + (2 * j + 1) * LANES + lane]) << 16)
    else:
        for lane in range(LANES):
            for j in range(2):
                word = np.int32(0)
                for i in range(4):
                    word |= (np.int32(work[at + (4 * j + i) * LANES + lane]) & 255) << (8 * i)
                words[2 * lane + j] = word
    size = 4 if wide else 2
    part = v[size * first : size * (first + count)]
    for i in range(part.shape[0]):
        part[i] = words[i]


@njit(**OPTIONS)
def clip(work, lane, m, q, limit, spare):
    """`reference.nested.clip` of the block in a lane, to the rows CHOSEN; a lane of `spare` tries one step."""
    size = _reach(work, lane, m, q, limit)
    bound = np.floor(limit / m) + HALF
    for step in range(CLIP_STEPS):
        for i in range(8):
            spare[i * LANES + step] = (work[i * LANES + lane] / size) * (
                ONE - np.float32(step) / np.float32(CLIP_STEPS)
            )
    for step in range(CLIP_STEPS):
        spare[_BEST + step] = nearest(spare, step, m, q, bound)
    at = 0
    while at < CLIP_STEPS and not spare[_BEST + at] < INFINITY:
        at += 1
    for i in range(8):
        work[CHOSEN + i * LANES + lane] = spare[POINT + i * LANES + at] if at < CLIP_STEPS else ZERO


@njit(**OPTIONS)
def _reach(work, lane, m, q, limit):
    """What divides the block in a lane down onto the boundary of m's codewords, as `reference.nested.onto_boundary`."""
    first = second = total = negatives = ZERO
    least = INFINITY
    for i in range(8):
        y = work[i * LANES + lane]
        a = abs(y)
        low = a if a < first else first
        second = low if low > second else second
        first = a if a > first else first
        least = a if a < least else least
        total += a
        negatives += ONE if y < ZERO else ZERO
    half = (total - TWO * odd(negatives) * least) / TWO
    gauge = max(first + second, half) / (TWO * m * q)
    return max(gauge, first / limit, ONE)


@team_loop
def block_errors(x, steps, bounds, q, errors, start, stop):
    """Fills errors (blocks, candidates) for blocks start … stop of x (8·blocks,): squared error under each step."""
    work = np.zeros(WORK, np.float32)
    for first in range(start, stop, LANES):
        count = min(LANES, stop - first)
        work[_BEST : _BEST + LANES] = ONE
        load(x, first, count, work)
        for j in range(steps.shape[0]):
            for lane in range(LANES):
                work[_BEST + lane] = nearest(work, lane, steps[j], q, bounds[j])
            for lane in range(count):
                errors[first + lane, j] = work[_BEST + lane]
