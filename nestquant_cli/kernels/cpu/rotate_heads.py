"""The Hadamard part of a head's rotation on tiles: entry j of the vector in a lane is tile[j·LANES + lane].

Every sum has a fixed order that does not depend on how many vectors there are, so a vector is coded alike in a prompt
and on its own. Of integers below 2²⁴ the sums are exact, as products with the dense matrix are: decoded vectors agree
to the bit with those of every other implementation.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ...rotation.orders import atoms
from ...rotation.paley import paley_matrix
from ...rotation.transform import rotation
from .e8 import LANES, OPTIONS, ZERO
from .jit import njit


class Turn(NamedTuple):
    """A rotation R = H·diag(diagonal) of one order, as the loops take it.

    Attributes:
        diagonal: (n,) float32, signs divided by the root of the order of the Hadamard block.
        steps: (factors, 5) int64: begin and size of the block, order p of the factor, entries after its axis, where
            the factor's matrix begins.
        forward: matrices of the factors that are not 2 × 2, row by row, float32.
        backward: the same, transposed.
    """

    diagonal: np.ndarray
    steps: np.ndarray
    forward: np.ndarray
    backward: np.ndarray


@lru_cache(maxsize=64)
def head_rotation(order: int, seed: int) -> Turn:
    """The rotation `rotation(order, seed)`."""
    which = rotation(order, seed)
    roots = np.repeat(1 / np.sqrt(np.array(which.block_orders, dtype=np.float64)), which.block_orders)
    steps, matrices, at, begin = [], [np.zeros((1, 1), np.float32)], 1, 0
    for size in which.block_orders:
        after = size
        for p in atoms(size):
            after //= p
            steps.append((begin, size, p, after, at))
            if p > 2:
                matrices.append(paley_matrix(p).astype(np.float32))
                at += p * p
        begin += size
    flat = [np.concatenate([m.reshape(-1) for m in chosen]) for chosen in (matrices, [m.T for m in matrices])]
    return Turn((which.signs * roots).astype(np.float32), np.array(steps, np.int64).reshape(-1, 5), *flat)


@njit(**OPTIONS)
def rotate_tile(tile, steps, matrices):
    """Multiplies the vectors in a tile by the Hadamard blocks, in place."""
    spare = tile[tile.shape[0] // 2 :]
    for s in range(steps.shape[0]):
        begin, size, p, after, at = steps[s]
        for first in range(begin, begin + size, p * after):
            for column in range(first, first + after):
                if p == 2:
                    low, high = column * LANES, (column + after) * LANES
                    _butterfly(tile[low : low + LANES], tile[high : high + LANES])
                else:
                    _dense(tile, column, p, after, matrices[at : at + p * p], spare)


# Slices are taken before a loop over lanes: of an index whose sign is not known, Numba wraps the negative values, and
# the loop does not become vector instructions.


@njit(**OPTIONS)
def _butterfly(low, high):
    """Replaces a and b by a + b and a − b."""
    for lane in range(LANES):
        a = low[lane]
        b = high[lane]
        low[lane] = a + b
        high[lane] = a - b


@njit(**OPTIONS)
def _dense(tile, column, p, after, matrix, spare):
    """One product with a p × p matrix, p a multiple of 4: of the rows column, column + after, …"""
    for i in range(p):
        row = (column + i * after) * LANES
        spare[i * LANES : (i + 1) * LANES] = tile[row : row + LANES]
    for i in range(p):
        row = (column + i * after) * LANES
        target = tile[row : row + LANES]
        target[:] = ZERO
        for j in range(0, p, 4):
            _add_four(matrix[i * p + j : i * p + j + 4], spare[j * LANES : (j + 4) * LANES], target)


@njit(**OPTIONS)
def _add_four(factors, rows, target):
    """Adds four rows times their factors."""
    a, b, c, d = factors[0], factors[1], factors[2], factors[3]
    for lane in range(LANES):
        left = a * rows[lane] + b * rows[LANES + lane]
        right = c * rows[2 * LANES + lane] + d * rows[3 * LANES + lane]
        target[lane] += left + right
