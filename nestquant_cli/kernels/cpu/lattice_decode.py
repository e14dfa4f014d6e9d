"""Decoding grouped lattices: digits of a row to G·l(z), one group after the other. Compiled by Numba.

Sums are taken in another order than a matrix product of torch takes them, so the last bits differ from it.
"""

from .e8 import LANE, ZERO
from .jit import njit
from .threads import team_loop


@team_loop
def decode(words, groups, tables, turned, values, start, stop):
    """Decodes the rows start … stop.

    Args:
        words: (rows, bytes) uint8, digits as `e8.digits` packs them, a group from a whole byte on.
        groups: (count, 4) int64, of each group its first column, its columns, the bits of a digit and its first byte.
        tables: (count, most) float32, the levels of each group.
        turned: (count, d, d) float32, Gᵀ of each group, or (1, d, d) for all.
        values: (rows, entries) float32, filled.
    """
    d = turned.shape[1]
    for row in range(start, stop):
        string, out = words[row], values[row]
        for group in range(groups.shape[0]):
            first, columns, bits, byte = groups[group]
            table, G = tables[group], turned[min(group, turned.shape[0] - 1)]
            mask, bit = (1 << bits) - 1, 8 * byte
            for block in range(first, first + columns, d):
                point = out[block : block + d]
                for j in range(d):
                    point[j] = ZERO
                for i in range(d):
                    at, shift = bit >> 3, bit & 7
                    digit = string[at] >> shift
                    if shift + bits > 8:
                        digit |= string[at + 1] << (8 - shift)
                    _add(point, G[i], table[digit & mask])
                    bit += bits


@njit(**LANE)
def _add(point, column, level):
    for j in range(point.shape[0]):
        point[j] += column[j] * level
