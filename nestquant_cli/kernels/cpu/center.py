"""Subtracting a center from vectors that it makes smaller, and adding it again. Compiled by Numba."""

import numpy as np

from .e8 import ONE, OPTIONS, ZERO
from .jit import njit
from .rotate import TOKENS


@njit(**OPTIONS)
def subtract_nearer(row, center):
    """Subtracts the center from a vector if that makes it smaller; whether it did."""
    product = ZERO
    square = ZERO
    for j in range(row.shape[0]):
        product += row[j] * center[j]
        square += center[j] * center[j]
    nearer = product + product > square
    if nearer:
        for j in range(row.shape[0]):
            row[j] -= center[j]
    return nearer


@njit(**OPTIONS)
def subtract_from_tile(tile, center, marks):
    """`subtract_nearer` for each token of a tile; `marks` starts with 1 for those it was subtracted from, else 0."""
    square = ZERO
    for lane in range(TOKENS):
        marks[lane] = ZERO
    for i in range(0, center.shape[0], 8):  # one at a time the loop over lanes would be unrolled and not vectorized
        part, sizes = tile[i * TOKENS : (i + 8) * TOKENS], center[i : i + 8]
        for j in range(8):
            square += sizes[j] * sizes[j]
        for lane in range(TOKENS):
            for j in range(8):
                marks[lane] += part[j * TOKENS + lane] * sizes[j]
    for lane in range(TOKENS):
        marks[lane] = ONE if marks[lane] + marks[lane] > square else ZERO
    for i in range(0, center.shape[0], 8):
        part, sizes = tile[i * TOKENS : (i + 8) * TOKENS], center[i : i + 8]
        for lane in range(TOKENS):
            for j in range(8):
                part[j * TOKENS + lane] -= marks[lane] * sizes[j]


@njit(**OPTIONS)
def subtract_own(x, centers, run, first, count, lines, marks):
    """Copies `count` vectors from row `first` of x on to `lines`, less the center of their head where it is nearer.

    Args:
        x: (rows, n) floating point.
        centers: (heads, n) float32; row i belongs to head (i div run) mod heads.
        run: vectors of a head that follow each other.
        lines: (at least count, n) float32, filled.
        marks: (at least count,) bool, filled with whether a center was subtracted.
    """
    for lane in range(count):
        line = lines[lane]
        for j in range(x.shape[1]):
            line[j] = np.float32(x[first + lane, j])
        marks[lane] = subtract_nearer(line, centers[(first + lane) // run % centers.shape[0]])


@njit(**OPTIONS)
def add_own(scales, centers, run, first, count, out):
    """Adds to `count` rows of `out` from `first` on the center of their head, where their scale is negative."""
    if centers.shape[0]:
        for lane in range(count):
            if scales[lane] < ZERO:
                center = centers[(first + lane) // run % centers.shape[0]]
                row = out[first + lane]
                for j in range(row.shape[0]):
                    row[j] += center[j]
