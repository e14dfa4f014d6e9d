"""The tile that the K-best search of nested codes works in: all paths of some rows in its lanes. Compiled by Numba.

Behind the rows that rounding needs come the panel's values, W, two copies of its targets, errors of a block, costs of
the paths, and for each branch its error and its eight values. With panels of 64
columns that is 293 rows of 64 floats before the branches, 73 KiB.
"""

from ..contract.constants import PANEL
from .e8 import INFINITY, LANE, LANES, OPTIONS, ZERO
from .jit import njit

VALUES = 26 * LANES
ORIGINAL = VALUES + PANEL * LANES
TARGETS = ORIGINAL + PANEL * LANES
ERROR = TARGETS + 2 * PANEL * LANES
SUM = ERROR + 8 * LANES  # where a loop's sums are: rows at constant places compile to vector instructions
HELD = SUM + LANES  # infinite where a point is no codeword
COST = HELD + LANES
BRANCHES = COST + LANES
BRANCH = 9 * LANES


@njit(**OPTIONS)
def load(work, t, W, cost, first, rows_here, alive):
    """Rows first … first + rows_here into a tile; targets go to the copy that the last block reads."""
    paths, width = t.shape[1], t.shape[2]
    targets = TARGETS + ((width // 8) & 1) * PANEL * LANES
    work[ORIGINAL:COST] = ZERO
    work[COST : COST + LANES] = INFINITY
    for row in range(rows_here):
        for path in range(paths):
            lane = row * paths + path
            for column in range(width):
                work[ORIGINAL + column * LANES + lane] = W[first + row, column]
            if path < alive:
                work[COST + lane] = cost[first + row, path]
                for column in range(width):
                    work[targets + column * LANES + lane] = t[first + row, path, column]


@njit(**OPTIONS)
def store(work, t, cost, index, parent, came, mark, first, rows_here, alive):
    """What was chosen, by going back from the first block of the panel to the last."""
    paths, width = t.shape[1], t.shape[2]
    for row in range(rows_here):
        for path in range(alive):
            lane = row * paths + path
            cost[first + row, path] = work[COST + lane]
            for b in range(width // 8):
                index[first + row, path, b] = mark[b, lane]
                for i in range(8):
                    t[first + row, path, 8 * b + i] = work[VALUES + (8 * b + i) * LANES + lane]
                lane = came[b, lane]
            parent[first + row, path] = lane - row * paths


@njit(**LANE)
def copy_row(work, to, at):
    for lane in range(LANES):
        work[to + lane] = work[at + lane]


@njit(**LANE)
def column_of(of, first, j):
    """Eight entries of a column, read before a loop over lanes that could otherwise be taken to change them."""
    return (
        of[first, j],
        of[first + 1, j],
        of[first + 2, j],
        of[first + 3, j],
        of[first + 4, j],
        of[first + 5, j],
        of[first + 6, j],
        of[first + 7, j],
    )


@njit(**LANE)
def _dot(work, lane, a, b, c, d, e, f, g, h):
    at = ERROR + lane
    low = work[at] * a + work[at + LANES] * b + work[at + 2 * LANES] * c + work[at + 3 * LANES] * d
    at += 4 * LANES
    return low + (work[at] * e + work[at + LANES] * f + work[at + 2 * LANES] * g + work[at + 3 * LANES] * h)


@njit(**LANE)
def add_square(work, a, b, c, d, e, f, g, h):
    for lane in range(LANES):
        part = _dot(work, lane, a, b, c, d, e, f, g, h)
        work[SUM + lane] += part * part


@njit(**LANE)
def add_dot(work, a, b, c, d, e, f, g, h):
    for lane in range(LANES):
        work[SUM + lane] += _dot(work, lane, a, b, c, d, e, f, g, h)


@njit(**OPTIONS)
def feed_back(work, old, new, L, b, came):
    """The targets of the columns before block b, for the paths that are kept: those of the path that each comes from,
    with the errors of the block fed back."""
    for i in range(8):
        value, original = VALUES + (8 * b + i) * LANES, ORIGINAL + (8 * b + i) * LANES
        for lane in range(LANES):
            work[ERROR + i * LANES + lane] = work[original + lane] - work[value + lane]
    for column in range(8 * b):
        at = old + column * LANES
        for lane in range(LANES):
            work[SUM + lane] = work[at + came[lane]]
        add_dot(work, *column_of(L, 8 * b, column))
        copy_row(work, new + column * LANES, SUM)
