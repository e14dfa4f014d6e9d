"""The randomized Hadamard transform of a few tokens at a time: lanes are tokens. Compiled by Numba.

A tile holds TOKENS vectors as a structure of arrays, coordinate i of the token in a lane at tile[i·TOKENS + lane], so
that every factor of the Kronecker product is sums of whole rows.
"""

from numba import njit

from .cpu_lattice import LANE, OPTIONS, ZERO

TOKENS = 16
LARGEST_FACTOR = 64  # of the dense factors; larger ones are left to matrix products
RUN = 128  # floats that are transformed together
FEW = 4  # tokens up to which they are transformed one by one

_SIGNS = LARGEST_FACTOR * RUN  # rows of the work array after the inputs: four rows of the factor, and the results
_OUT = _SIGNS + 4 * LARGEST_FACTOR
WORK = _OUT + 4 * RUN


@njit(**OPTIONS)
def transform(tile, sizes, signs, work):  # type: ignore[no-untyped-def]
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
        if p == 4 and stride == TOKENS:
            _last_four(tile)
            continue
        if p == 2 and stride == TOKENS:
            _last_two(tile)
            continue
        for start in range(0, tile.shape[0], whole):
            for first in range(start, start + stride, RUN):
                count = min(RUN, start + stride - first)
                _factor(tile, first, stride, count, p, signs, at, work)
        at += p * p


@njit(**OPTIONS)
def transform_one(vector, sizes, signs, work, other):  # type: ignore[no-untyped-def]
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
            if p == 2:
                _pair(work)
            elif p == 4:
                _four(work)
            for i in range(0, p, 4 if p > 4 else p):
                if p > 4:
                    _four_rows(work, signs, at + i * p, p)
                begin = _OUT if p > 4 else 0
                for lane in range(count):
                    place = (first + lane) * p + i
                    for j in range(min(4, p)):
                        other[place + j] = work[begin + j * RUN + lane]
        vector[:] = other
        at += p * p


@njit(**LANE)
def _factor(tile, first, stride, count, p, signs, at, work):  # type: ignore[no-untyped-def]
    """One dense factor on `count` ≤ RUN neighbouring columns of p entries that are `stride` apart."""
    for k in range(p):
        _copy(tile, first + k * stride, work, k * RUN, count)
    if p == 2:
        _pair(work)
    elif p == 4:
        _four(work)
    if p <= 4:
        for i in range(p):
            _copy(work, i * RUN, tile, first + i * stride, count)
        return
    for i in range(0, p, 4):  # every larger factor has a multiple of four rows
        _four_rows(work, signs, at + i * p, p)
        for j in range(4):
            _copy(work, _OUT + j * RUN, tile, first + (i + j) * stride, count)


@njit(**LANE)
def _four_rows(work, signs, at, p):  # type: ignore[no-untyped-def]
    for k in range(4 * p):
        work[_SIGNS + k] = signs[at + k]
    if p == 12:
        _rows_of_12(work)
    else:
        _rows(work, p)


@njit(**OPTIONS)
def _last_four(tile):  # type: ignore[no-untyped-def]
    for start in range(0, tile.shape[0], 4 * TOKENS):
        part = tile[start : start + 4 * TOKENS]
        for lane in range(TOKENS):
            a, b, c, d = part[lane], part[TOKENS + lane], part[2 * TOKENS + lane], part[3 * TOKENS + lane]
            part[lane] = (a + b) + (c + d)
            part[TOKENS + lane] = (a - b) + (c - d)
            part[2 * TOKENS + lane] = (a + b) - (c + d)
            part[3 * TOKENS + lane] = (a - b) - (c - d)


@njit(**OPTIONS)
def _last_two(tile):  # type: ignore[no-untyped-def]
    for start in range(0, tile.shape[0], 2 * TOKENS):
        part = tile[start : start + 2 * TOKENS]
        for lane in range(TOKENS):
            a, b = part[lane], part[TOKENS + lane]
            part[lane] = a + b
            part[TOKENS + lane] = a - b


@njit(**LANE)
def _copy(source, start, target, place, count):  # type: ignore[no-untyped-def]
    a = source[start : start + count]
    b = target[place : place + count]
    if count == RUN:
        for lane in range(RUN):
            b[lane] = a[lane]
    else:
        for lane in range(count):
            b[lane] = a[lane]


@njit(**OPTIONS)
def _pair(work):  # type: ignore[no-untyped-def]
    for lane in range(RUN):
        a, b = work[lane], work[RUN + lane]
        work[lane] = a + b
        work[RUN + lane] = a - b


@njit(**OPTIONS)
def _four(work):  # type: ignore[no-untyped-def]
    for lane in range(RUN):
        a, b, c, d = work[lane], work[RUN + lane], work[2 * RUN + lane], work[3 * RUN + lane]
        work[lane] = (a + b) + (c + d)
        work[RUN + lane] = (a - b) + (c - d)
        work[2 * RUN + lane] = (a + b) - (c + d)
        work[3 * RUN + lane] = (a - b) - (c - d)


@njit(**OPTIONS)
def _rows_of_12(work):  # type: ignore[no-untyped-def]
    """Four rows; a constant number of terms compiles to sums in registers."""
    for lane in range(RUN):
        a = b = c = d = ZERO
        for k in range(12):
            x = work[k * RUN + lane]
            a += work[_SIGNS + k] * x
            b += work[_SIGNS + 12 + k] * x
            c += work[_SIGNS + 24 + k] * x
            d += work[_SIGNS + 36 + k] * x
        work[_OUT + lane] = a
        work[_OUT + RUN + lane] = b
        work[_OUT + 2 * RUN + lane] = c
        work[_OUT + 3 * RUN + lane] = d


@njit(**OPTIONS)
def _rows(work, p):  # type: ignore[no-untyped-def]
    """Four rows of p, four terms at a time."""
    work[_OUT : _OUT + 4 * RUN] = ZERO
    for j in range(4):
        for k in range(0, p, 4):
            place = _SIGNS + j * p + k
            a, b, c, d = work[place], work[place + 1], work[place + 2], work[place + 3]
            x = work[k * RUN : (k + 4) * RUN]
            y = work[_OUT + j * RUN : _OUT + (j + 1) * RUN]
            for lane in range(RUN):
                y[lane] += (a * x[lane] + b * x[RUN + lane]) + (c * x[2 * RUN + lane] + d * x[3 * RUN + lane])
