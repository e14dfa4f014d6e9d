"""Tokens rotated and rounded to plain int8 in one pass over memory, each on a grid of its own. Compiled by Numba."""

import numpy as np

from ..contract.constants import EMPTY, INFINITE, LARGEST, LEAST_POWER, MOST_POWER
from .e8 import OPTIONS, ZERO
from .jit import njit
from .rotate import TOKENS, WORK
from .threads import team_loop
from .tokens import load_rotated

_LEVELS = np.float32(LARGEST)
_INFINITY = np.float32(np.inf)
_MAGIC = np.float32(12582912.0)  # 1.5·2²³: what is added to it is rounded to an integer, found in the lowest bits


@team_loop
def round_tokens(wide, narrow, plan, v, exponent, start, stop):
    """Rotates the tokens start … stop and rounds each to the multiples of 2^exponent.

    The exponent is the least even number for which no entry is beyond ±127.

    Args:
        wide, narrow, plan: as in `tokens.rotate`.
        v: (tokens, order) int8.
        exponent: (tokens,) int8, filled; EMPTY or INFINITE say that a row of v means nothing.
    """
    order = plan[0].shape[0]
    tile = np.empty(order * TOKENS, np.float32)
    bits = tile.view(np.int32)
    work = np.zeros(WORK, np.float32)
    largest = np.empty(TOKENS, np.float32)
    factor = np.empty(TOKENS, np.float32)
    for first in range(start, stop, TOKENS):
        count = min(TOKENS, stop - first)
        load_rotated(wide, narrow, first, count, plan, tile, work)
        _largest(tile, largest)
        _steps(largest, factor, exponent[first : first + count])
        for i in range(0, order, 8):  # one at a time the loop over lanes would be unrolled and not vectorized
            part = tile[i * TOKENS : (i + 8) * TOKENS]
            for lane in range(TOKENS):
                for j in range(8):
                    part[j * TOKENS + lane] = part[j * TOKENS + lane] * factor[lane] + _MAGIC
        for lane in range(count):
            row = v[first + lane]
            for i in range(order):
                row[i] = np.int8(bits[i * TOKENS + lane])


@njit(**OPTIONS)
def _largest(tile, largest):
    """The largest magnitude of each token of a tile; not a number where the token has one that is none."""
    largest[:] = ZERO
    for i in range(0, tile.shape[0] // TOKENS, 8):
        part = tile[i * TOKENS : (i + 8) * TOKENS]
        for lane in range(TOKENS):
            for j in range(8):
                size = abs(part[j * TOKENS + lane])
                largest[lane] = largest[lane] if size <= largest[lane] else size


@njit(**OPTIONS)
def _steps(largest, factor, exponent):
    """Exponents of the tokens of a tile and the inverses of their steps."""
    size_bits = largest.view(np.int32)
    factor_bits = factor.view(np.int32)
    for lane in range(TOKENS):
        size = largest[lane]
        power = 0
        found = INFINITE
        if size == ZERO:
            found = EMPTY
        elif size < _INFINITY:
            largest[lane] = size / _LEVELS
            power = ((size_bits[lane] >> 23) & 255) - 126  # 2^power is above the largest entry / 127
            power = min(max(power + (power & 1), LEAST_POWER), MOST_POWER)
            found = power
        factor_bits[lane] = (127 - power) << 23
        if lane < exponent.shape[0]:
            exponent[lane] = found
