"""E8 arithmetic on lanes, for the CPU kernels.

A tile holds LANES blocks as a structure of arrays in one flat array: entry i of the block in a lane is
work[first + i·LANES + lane]. Every function here handles one lane in straight-line code without branches, and a tile is
one array, so that a loop over lanes compiles to vector instructions (separate arrays could alias, which stops it).
Comparing and counting parities in float32 is exact: every number involved is a small multiple of 2⁻⁹.
"""

import numpy as np

from .jit import njit

LANES = 64
POINT = 8 * LANES  # first row of what `nearest` writes; the block itself is in the rows from 0

# Numba reads a bare 1.0 as float64, which would halve the lanes of every vector.
ZERO, QUARTER, HALF, ONE, TWO, FOUR = (np.float32(value) for value in (0, 0.25, 0.5, 1, 2, 4))
INFINITY = np.float32(np.inf)

# The fused multiply-adds of "contract" change no result that must be exact.
OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
LANE = {**OPTIONS, "forceinline": True}


@njit(**LANE)
def odd(count):
    """1.0 for an odd integer, 0.0 for an even one."""
    return count - TWO * np.floor(count * HALF)


@njit(**LANE)
def _coset(work, lane, inverse, other):
    """Which coset of D8 holds the nearest E8 point of t = block·inverse (see e8.nearest); `other` takes the other one.

    Returns:
        half: 1.0 for the half-integer coset, else 0.0.
        jump: what a flip adds to the doubled coordinate in the direction of the residual, 0.0 if there is none.
        at: the |residual| of the entry to flip.
    """
    total = ZERO
    negatives = ZERO
    spread = ZERO
    square = ZERO
    worst = -ONE
    best = TWO
    for i in range(8):
        t = work[i * LANES + lane] * inverse
        n = np.floor(t + HALF)
        r = t - n
        a = abs(r)
        total += n
        negatives += ONE if r < ZERO else ZERO
        spread += a
        square += r * r
        worst = a if a > worst else worst
        best = a if a < best else best
    odd_even = odd(total)
    odd_half = odd(total + negatives)
    even_distance = square + odd_even * (ONE - TWO * worst)
    half_distance = square - spread + TWO + odd_half * (TWO * best)
    take = (half_distance < even_distance) != other
    return (ONE if take else ZERO), (-TWO * odd_half if take else TWO * odd_even), (best if take else worst)


@njit(**LANE)
def nearest(work, lane, step, q, bound, other=False):
    """Writes step·u to the rows of POINT, u the nearest point of block/step in doubled coordinates; with `other` the
    nearest of the coset of D8 that this one is not in.

    A codeword u is its own representative: u + ε (see e8.voronoi) lies inside every facet of the cell. It never
    lies on one, so two comparisons settle it.

    Returns:
        Σ(block − step·u)², infinite when u is not a codeword or max |u| > bound; bound is half-way between integers.
    """
    inverse = HALF / step
    half, jump, at = _coset(work, lane, inverse, other)
    error = ZERO
    for i in range(8):
        y = work[i * LANES + lane]
        t = y * inverse
        n = np.floor(t + HALF)
        r = t - n
        hit = jump if abs(r) == at else ZERO
        jump -= hit  # of several equal residuals the first is flipped
        side = half + hit
        u = TWO * n + (-side if r < ZERO else side)
        work[POINT + i * LANES + lane] = u
        d = y - step * u
        error += d * d
    first = ZERO
    second = ZERO
    spread = ZERO
    least = INFINITY
    negatives = ZERO
    offset = QUARTER
    for i in range(8):
        u = work[POINT + i * LANES + lane]
        work[POINT + i * LANES + lane] = step * u
        w = u + offset
        offset *= HALF
        a = abs(w)
        low = a if a < first else first
        second = low if low > second else second
        first = a if a > first else first
        least = a if a < least else least
        spread += a
        negatives += ONE if w < ZERO else ZERO
    corner = spread - TWO * odd(negatives) * least
    inside = (first + second < TWO * q) & (corner < FOUR * q) & (first < bound)
    return error if inside else INFINITY


@njit(**LANE)
def representative(work, lane, q):
    """e8.voronoi.reduce of the block of integers in a lane, in place; q is a float."""
    width = TWO * q
    inverse = ONE / width
    shift = q + HALF  # u + q is an integer: half a unit keeps the floor away from rounding noise
    total = ZERO
    negatives = ZERO
    spread = ZERO
    worst = ZERO
    least = INFINITY
    offset = QUARTER
    for i in range(8):
        u = work[i * LANES + lane]
        n = np.floor((u + shift) * inverse)
        w = u - width * n + offset
        offset *= HALF
        work[i * LANES + lane] = w
        a = abs(w)
        total += n
        negatives += ONE if w < ZERO else ZERO
        spread += a
        worst = a if a > worst else worst
        least = a if a < least else least
    odd_even = odd(total)
    odd_half = odd(total + negatives)
    gap = FOUR * q - spread + TWO * odd_half * least - TWO * odd_even * (q - worst)
    take = gap < ZERO
    start = -q if take else ZERO
    jump = width * odd_half if take else -width * odd_even
    at = least if take else worst
    offset = QUARTER
    for i in range(8):
        w = work[i * LANES + lane]
        move = start + (jump if abs(w) == at else ZERO)
        work[i * LANES + lane] = w - offset + (-move if w < ZERO else move)
        offset *= HALF
