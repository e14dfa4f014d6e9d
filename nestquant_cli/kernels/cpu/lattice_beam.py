"""The K-best search for points z of a box with the least ‖y − l(z)·T‖², T lower triangular. Compiled by Numba.

The last coordinate is chosen first, as in Babai's nearest plane, which is the search with one path. With K paths, the
K cheapest sets of choices for all coordinates so far survive each step.
"""

import numpy as np

from ..contract.constants import NEAREST_LEVELS
from .e8 import LANE, OPTIONS
from .jit import njit


@njit(**OPTIONS)
def search_panel(residual, cost, alive, T, kind, levels, counts, digits, parent, paths):
    """Chooses the columns of one panel for every row.

    Args:
        residual: (rows, paths, width) float32, y minus the contribution of the columns after the panel; overwritten
            with the chosen levels.
        cost: (rows, paths) float32, cost of the columns after the panel; the cost of the panel is added.
        alive: number of paths in use.
        T: (width, width) float32, the panel's part of the triangle.
        kind: (width,) int64, which row of `levels` a column has.
        levels: (kinds, most) float32, increasing up to the count of each.
        counts: (kinds,) int64.
        digits: (rows, paths, width) uint8, output: the number of each chosen level.
        parent: (rows, paths) int64, output: the path from before the panel that each path continues.
        paths: most paths to keep.

    Returns:
        number of paths in use now, the same for every row.
    """
    width, start = T.shape[0], alive
    found = np.empty(paths * NEAREST_LEVELS, np.float32)
    both = np.empty((2, paths, width), np.float32)  # residuals before a column and after it, by turns
    first, chosen = np.empty(paths, np.int64), np.empty(paths * NEAREST_LEVELS + 1, np.int64)
    came, digit = np.empty((width, paths), np.int64), np.empty((width, paths), np.uint8)
    for row in range(residual.shape[0]):
        alive = start
        for path in range(alive):
            _copy(both[width & 1, path], residual[row, path])
        for column in range(width - 1, -1, -1):
            u, rest = both[(column + 1) & 1], both[column & 1]
            table, count, pivot = levels[kind[column]], counts[kind[column]], T[column, column]
            for path in range(alive):
                first[path] = _below(u[path, column] / pivot, table, count)
                for number in range(NEAREST_LEVELS):
                    gap = u[path, column] - table[first[path] + number] * pivot
                    found[path * NEAREST_LEVELS + number] = cost[row, path] + gap * gap
            alive = choose(found, alive * NEAREST_LEVELS, paths, chosen)
            for new in range(alive):
                path = chosen[new] // NEAREST_LEVELS
                level = first[path] + chosen[new] % NEAREST_LEVELS
                cost[row, new], came[column, new], digit[column, new] = found[chosen[new]], path, level
                _less(rest[new], u[path], table[level], T[column], column)
        for new in range(alive):
            path = new
            for column in range(width):
                digits[row, new, column] = digit[column, path]
                residual[row, new, column] = levels[kind[column], digit[column, path]]
                path = came[column, path]
            parent[row, new] = path
    return alive


@njit(**LANE)
def _copy(out, u):
    for column in range(u.shape[0]):
        out[column] = u[column]


@njit(**LANE)
def _less(out, u, level, row, count):
    for left in range(count):
        out[left] = u[left] - level * row[left]


@njit(**OPTIONS)
def choose(found, total, room, chosen):
    """Selects the `room` smallest of the costs `found[:total]`, none of them negative.

    It bisects for the cost of rank `room`, on the costs' bits, which as integers have the same order. Each step counts
    the costs up to the middle in one vector loop, with no branch that depends on the data; selection by pivots branches
    on every comparison. Of costs that equal the last one taken, those at the first positions are taken.

    Args:
        found: float32, at least `total`.
        total: number of costs.
        room: how many to take.
        chosen: int64, room for one more than are taken; filled with their positions, ascending.

    Returns:
        how many were taken: the smaller of `total` and `room`.
    """
    if total <= room:
        for position in range(total):
            chosen[position] = position
        return total
    bits = found[:total].view(np.int32)
    low, high = np.int64(bits.min()) - 1, np.int64(bits.max())
    while high - low > 1:  # fewer than `room` costs are at most `low`, and at least `room` are at most `high`
        middle = (low + high) >> 1
        count = _up_to(bits, np.int32(middle))
        if count < room:
            low = middle
        else:
            high = middle
            if count == room:
                break
    # Where the loop ran to its end, `high` is the cost of rank `room`, and of those that equal it only `ties` fit.
    count, ties = 0, room - _up_to(bits, np.int32(low)) if high - low == 1 else room
    for position in range(total):
        equal = high - low == 1 and bits[position] == high
        chosen[count] = position
        count += bits[position] <= high and (not equal or ties > 0)
        ties -= equal
    return count


@njit(**LANE)
def _up_to(bits, limit):
    count = np.int32(0)
    for place in range(bits.shape[0]):
        count += np.int32(bits[place] <= limit)
    return count


@njit(**LANE)
def _below(x, table, count):
    """The number of the level below x, clamped so that the next one exists too; `count` is a power of 2."""
    low, step = 0, count >> 1
    while step > 0:
        low += step if table[low + step - 1] < x else 0
        step >>= 1
    return min(max(low - 1 if x <= table[low] else low, 0), count - NEAREST_LEVELS)
