"""The randomized Hadamard transform of a few tokens at a time: lanes are tokens. Compiled by Numba.

A tile holds TOKENS vectors as a structure of arrays, coordinate i of the token in a lane at tile[i·TOKENS + lane], so
that every factor of the Kronecker product is sums of whole rows.
"""

from typing import Any

from .e8 import LANE, OPTIONS, ZERO
from .jit import njit

TOKENS = 16
LARGEST_FACTOR = 64  # of the dense factors; larger ones are left to matrix products
RUN = 128  # floats that are transformed together
FEW = 4  # tokens up to which they are transformed one by one

_OUT = LARGEST_FACTOR * RUN  # where the results are in the work array, after the inputs
WORK = _OUT + 4 * RUN


@njit(**OPTIONS)
def transform(tile, sizes, signs, work):
    """Applies the factors of one Hadamard block to a tile, without the 1/√n.

    Args:
        tile: (order·TOKENS,) float32, in place.
        sizes: (factors,) integers p that multiply to the order, the slowest axis first.
        signs: (Σp²,) float32, the ±1 of the factors, one after another.
        work: (WORK,) float32 scratch.
    """
    stride = tile.shape[0]
    at = 0
    for p in sizes:
        whole = stride
        stride //= p
        if stride == TOKENS and p in (2, 4, 16):
            _last(tile, p)
            continue
        for start in range(0, tile.shape[0], whole):
            for first in range(start, start + stride, RUN):
                count = min(RUN, start + stride - first)
                _factor(tile, first, stride, count, p, signs, at, work)
        at += p * p


@njit(**OPTIONS)
def transform_one(vector, sizes, signs, work, other):
    """The same for a single token; lanes are coordinates.

    Every factor is applied to the slowest axis, which then becomes the fastest, so that after the last one all are back
    in their places.

    Args:
        vector: (order,) float32, in place.
        sizes, signs, work: as in `transform`.
        other: (order,) float32 scratch.
    """
    order = vector.shape[0]
    at = 0
    for p in sizes:
        stride = order // p
        for first in range(0, stride, RUN):
            count = min(RUN, stride - first)
            for k in range(p):
                _copy(vector, first + k * stride, work, k * RUN, count)
            if p in (2, 4, 8, 16):
                _twos(work, p)
                for lane in range(count):
                    for j in range(p):
                        other[(first + lane) * p + j] = work[j * RUN + lane]
                continue
            for i in range(0, p, 4):
                _four_rows(work, signs, at + i * p, p)
                for lane in range(count):
                    for j in range(4):
                        other[(first + lane) * p + i + j] = work[_OUT + j * RUN + lane]
        vector[:] = other
        at += p * p


@njit(**LANE)
def _factor(tile, first, stride, count, p, signs, at, work):
    """One dense factor on `count` ≤ RUN neighbouring columns of p entries that are `stride` apart."""
    for k in range(p):
        _copy(tile, first + k * stride, work, k * RUN, count)
    if p in (2, 4, 8, 16):
        _twos(work, p)
        for i in range(p):
            _copy(work, i * RUN, tile, first + i * stride, count)
        return
    for i in range(0, p, 4):  # every larger factor has a multiple of four rows
        _four_rows(work, signs, at + i * p, p)
        for j in range(4):
            _copy(work, _OUT + j * RUN, tile, first + (i + j) * stride, count)


@njit(**LANE)
def _four_rows(work, signs, at, p):
    if p == 12:
        _rows_of_12(work, signs[at : at + 48])
    else:
        _rows(work, signs[at : at + 4 * p], p)


def _pairs(step: int, groups: int = 1) -> Any:
    """A factor of 2 on the rows of `step` floats at 0 and step, in groups of rows one after another.

    A constant compiles to vector instructions, unless a loop is so short that it is unrolled instead: hence groups.
    """

    @njit(**LANE)
    def pairs(rows):
        for lane in range(step):
            for group in range(groups):
                at = 2 * group * step + lane
                a, b = rows[at], rows[step + at]
                rows[at] = a + b
                rows[step + at] = a - b

    return pairs


def _fours(step: int, groups: int = 1) -> Any:
    """Two factors of 2 at once on the rows of `step` floats at 0, step, 2·step and 3·step, likewise in groups."""

    @njit(**LANE)
    def fours(rows):
        for lane in range(step):
            for group in range(groups):
                at = 4 * group * step + lane
                a, b, c, d = rows[at], rows[step + at], rows[2 * step + at], rows[3 * step + at]
                rows[at] = (a + b) + (c + d)
                rows[step + at] = (a - b) + (c - d)
                rows[2 * step + at] = (a + b) - (c + d)
                rows[3 * step + at] = (a - b) - (c - d)

    return fours


_pairs_last, _pairs_last_grouped, _pairs_run, _pairs_far = (
    _pairs(TOKENS),
    _pairs(TOKENS, 8),
    _pairs(RUN),
    _pairs(4 * RUN),
)
_fours_last, _fours_last_grouped, _fours_last_far = _fours(TOKENS), _fours(TOKENS, 4), _fours(4 * TOKENS)
_fours_run, _fours_far = _fours(RUN), _fours(4 * RUN)


@njit(**OPTIONS)
def _last(tile, p):
    """The factor of p = 2, 4 or 16 on the fastest axis."""
    together = 16 * TOKENS
    grouped = tile.shape[0] // together * together
    for start in range(0, grouped, together):
        part = tile[start : start + together]
        if p == 2:
            _pairs_last_grouped(part)
        else:
            if p == 16:
                _fours_last_far(part)
            _fours_last_grouped(part)
    for start in range(grouped, tile.shape[0], p * TOKENS):
        if p == 2:
            _pairs_last(tile[start:])
        else:
            _fours_last(tile[start:])


@njit(**OPTIONS)
def _twos(work, p):
    """The factor of p = 2, 4, 8 or 16 on rows of RUN lanes."""
    if p == 16:
        _fours_far(work)
        for i in range(4):
            _fours_run(work[4 * i * RUN :])
    elif p == 8:
        _pairs_far(work)
        for i in range(2):
            _fours_run(work[4 * i * RUN :])
    elif p == 4:
        _fours_run(work)
    else:
        _pairs_run(work)


@njit(**LANE)
def _copy(source, start, target, place, count):
    a = source[start : start + count]
    b = target[place : place + count]
    if count == RUN:
        for lane in range(RUN):
            b[lane] = a[lane]
    else:
        for lane in range(count):
            b[lane] = a[lane]


@njit(**OPTIONS)
def _rows_of_12(work, m):
    """Four rows m (48,); a constant number of terms compiles to sums in registers."""
    for lane in range(RUN):
        a = b = c = d = ZERO
        for k in range(12):
            x = work[k * RUN + lane]
            a += m[k] * x
            b += m[12 + k] * x
            c += m[24 + k] * x
            d += m[36 + k] * x
        work[_OUT + lane] = a
        work[_OUT + RUN + lane] = b
        work[_OUT + 2 * RUN + lane] = c
        work[_OUT + 3 * RUN + lane] = d


@njit(**OPTIONS)
def _rows(work, signs, p):
    """Four rows of p, signs (4·p,), four terms at a time."""
    work[_OUT : _OUT + 4 * RUN] = ZERO
    for k in range(0, p, 4):
        m = signs[k : k + 3 * p + 4].copy()
        x = work[k * RUN : (k + 4) * RUN]
        y = work[_OUT : _OUT + 4 * RUN]
        for lane in range(RUN):
            a, b, c, d = x[lane], x[RUN + lane], x[2 * RUN + lane], x[3 * RUN + lane]
            for j in range(4):
                i = j * p
                y[j * RUN + lane] += (m[i] * a + m[i + 1] * b) + (m[i + 2] * c + m[i + 3] * d)
