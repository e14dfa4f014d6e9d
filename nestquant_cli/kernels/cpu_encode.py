"""Rounding blocks to codewords: loops over tiles of blocks, lanes of a tile in vector units. Compiled by Numba."""

import numpy as np
from numba import njit

from .cpu_lattice import HALF, INFINITY, LANES, ONE, OPTIONS, POINT, nearest

OVERLOADED = 255  # index of a block that no multiplier holds

_CHOSEN = 16 * LANES  # rows of the tile: blocks, their nearest points, the best points so far, error and index of those
_BEST = 24 * LANES
_INDEX = 25 * LANES
_ROWS = 26 * LANES


@njit(**OPTIONS)
def quantize(x, factors, width, multipliers, q, limit, v, wide, index, start, stop):  # type: ignore[no-untyped-def]
    """Encodes the blocks start … stop.

    Args:
        x: (8·blocks,) float32, rows one after another.
        factors: (rows,) float32, 1/scale.
        width: blocks of a row.
        multipliers: (k,) float32.
        q, limit: float32.
        v: (2·blocks,) or (4·blocks,) int32, the bytes of int8 or, if `wide`, int16 entries.
        index: (blocks,) uint8; OVERLOADED for a block that no multiplier holds, whose v means nothing.
    """
    work = np.zeros(_ROWS, np.float32)
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
        for lane in range(LANES):
            work[_BEST + lane] = INFINITY
            work[_INDEX + lane] = np.float32(OVERLOADED)
        for i in range(multipliers.shape[0]):
            m = multipliers[i]
            _try(work, np.float32(i), m, q, np.floor(limit / m) + HALF)
        for lane in range(count):
            index[first + lane] = np.uint8(work[_INDEX + lane])
        store(work, _CHOSEN, first, count, words, v, wide)


@njit(**OPTIONS)
def _try(work, mark, m, q, bound):  # type: ignore[no-untyped-def]
    """Takes the nearest points under the multiplier m, whose index is `mark`, where they beat the best so far."""
    for lane in range(LANES):
        error = nearest(work, lane, m, q, bound)
        old = work[_BEST + lane]
        better = error < old
        work[_BEST + lane] = error if better else old
        work[_INDEX + lane] = mark if better else work[_INDEX + lane]
        for i in range(8):
            place = i * LANES + lane
            work[_CHOSEN + place] = work[POINT + place] if better else work[_CHOSEN + place]


@njit(**OPTIONS)
def load(x, first, count, work):  # type: ignore[no-untyped-def]
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
def store(work, at, first, count, words, v, wide):  # type: ignore[no-untyped-def]
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
def shrink(onto, m, q, limit, steps, v):  # type: ignore[no-untyped-def]
    """The steps of reference.clip for each of onto (blocks, 8), into v (blocks, 8) float32; a lane tries one step."""
    work = np.zeros(_ROWS, np.float32)
    bound = np.floor(limit / m) + HALF
    for block in range(onto.shape[0]):
        for lane in range(steps):
            for i in range(8):
                work[i * LANES + lane] = onto[block, i] * (ONE - np.float32(lane) / np.float32(steps))
        for lane in range(LANES):
            work[_BEST + lane] = nearest(work, lane, m, q, bound)
        at = 0
        while at < steps and not work[_BEST + at] < INFINITY:
            at += 1
        for i in range(8):
            v[block, i] = work[POINT + i * LANES + at] if at < steps else np.float32(0)


@njit(**OPTIONS)
def block_errors(x, steps, bounds, q, errors, start, stop):  # type: ignore[no-untyped-def]
    """Fills errors (blocks, candidates) for blocks start … stop of x (8·blocks,): squared error under each step."""
    work = np.zeros(_ROWS, np.float32)
    for first in range(start, stop, LANES):
        count = min(LANES, stop - first)
        work[_BEST : _BEST + LANES] = ONE
        load(x, first, count, work)
        for j in range(steps.shape[0]):
            for lane in range(LANES):
                work[_BEST + lane] = nearest(work, lane, steps[j], q, bounds[j])
            for lane in range(count):
                errors[first + lane, j] = work[_BEST + lane]
