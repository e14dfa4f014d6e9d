"""The K-best search for points z of a box with the least ‖y − l(z)·T‖², T lower triangular. Compiled by Numba.

The last coordinate is chosen first, as in Babai's nearest plane, which is what one path amounts to. With more, the
best choices of all coordinates so far are gone on with, as many as there are paths.
"""

import numpy as np
from numba import njit

from .cpu_lattice import LANE, OPTIONS

NEAREST = 2  # levels that a path branches to


@njit(**OPTIONS)
def search_panel(residual, cost, alive, T, kind, levels, counts, digits, parent, paths):  # type: ignore[no-untyped-def]
    """Chooses the columns of one panel for every row.

    Args:
        residual: (rows, paths, width) float32, y less what the columns after the panel took of it.
        cost: (rows, paths) float32, of the columns after the panel; with those of the panel when it returns.
        alive: paths that are in use.
        T: (width, width) float32, the panel's part of the triangle.
        kind: (width,) int64, which row of `levels` a column has.
        levels: (kinds, most) float32, increasing up to the count of each.
        counts: (kinds,) int64.
        digits: (rows, paths, width) uint8, filled: numbers of levels.
        parent: (rows, paths) int64, filled: the path from before the panel that each path goes on.
        paths: most that are kept.

    Returns:
        paths that are in use now, the same for every row.
    """
    width, start = T.shape[0], alive
    found = np.empty(paths * NEAREST, np.float32)
    both = np.empty((2, paths, width), np.float32)  # residuals before a column and after it, by turns
    first, chosen = np.empty(paths, np.int64), np.empty(paths, np.int64)
    came, digit = np.empty((width, paths), np.int64), np.empty((width, paths), np.uint8)
    for row in range(residual.shape[0]):
        alive = start
        for path in range(alive):
            _copy(both[width & 1, path], residual[row, path])
        for column in range(width - 1, -1, -1):
            u, rest = both[(column + 1) & 1], both[column & 1]
            table, count, pivot = levels[kind[column]], counts[kind[column]], T[column, column]
            branches = min(NEAREST, count) if paths > 1 else 1
            for path in range(alive):
                first[path] = _first(u[path, column] / pivot, branches, table, count)
                for number in range(branches):
                    gap = u[path, column] - table[first[path] + number] * pivot
                    found[path * branches + number] = cost[row, path] + gap * gap
            alive = _choose(found, alive * branches, chosen)
            for new in range(alive):
                path = chosen[new] // branches
                level = first[path] + chosen[new] % branches
                cost[row, new], came[column, new], digit[column, new] = found[chosen[new]], path, level
                _less(rest[new], u[path], table[level], T[column], column)
        for new in range(alive):
            path = new
            for column in range(width):
                digits[row, new, column] = digit[column, path]
                path = came[column, path]
            parent[row, new] = path
    return alive


@njit(**LANE)
def _copy(out, u):  # type: ignore[no-untyped-def]
    for column in range(u.shape[0]):
        out[column] = u[column]


@njit(**LANE)
def _less(out, u, level, row, count):  # type: ignore[no-untyped-def]
    for left in range(count):
        out[left] = u[left] - level * row[left]


@njit(**OPTIONS)
def _choose(found, total, chosen):  # type: ignore[no-untyped-def]
    """The places of the least of `found`, as many as `chosen` has room for; returns how many."""
    room = chosen.shape[0]
    if total <= room:
        for place in range(total):
            chosen[place] = place
        return total
    if room == 1:
        chosen[0] = np.argmin(found[:total])
        return 1
    limit, count = np.partition(found[:total], room - 1)[room - 1], 0
    for place in range(total):
        if found[place] < limit:
            chosen[count] = place
            count += 1
    for place in range(total):
        if found[place] == limit and count < room:
            chosen[count] = place
            count += 1
    return count


@njit(**OPTIONS)
def _first(x, branches, table, count):  # type: ignore[no-untyped-def]
    """The first of the `branches` levels nearest to x."""
    low, high = 0, count  # as many levels are below x
    while low < high:
        middle = (low + high) // 2
        if table[middle] < x:
            low = middle + 1
        else:
            high = middle
    first, last = low, low
    while last - first < branches:
        if first > 0 and (last == count or x - table[first - 1] <= table[last] - x):
            first -= 1
        else:
            last += 1
    return first
