"""The K-best search of nested codes over blocks of a row, last block first. Compiled by Numba.

A path is a choice for all blocks so far. Under each multiplier it branches to the nearest lattice point of its target
(with few multipliers also to that of the other coset of D8). The paths with the smallest Σ‖(t − v)·C_b‖² survive. A
tile has all paths of some rows in its lanes (see cpu_lattice).
"""

import numpy as np

from ..contract.constants import FEW_MULTIPLIERS, OVERLOADED, PANEL
from .e8 import HALF, INFINITY, LANE, LANES, OPTIONS, POINT, ZERO, nearest
from .encode import CHOSEN, clip
from .jit import njit
from .lattice_beam import choose

# Rows of a tile behind those that rounding needs: the panel's values, W, two copies of its targets, errors of a block,
# costs of the paths, and for each branch its error and its eight values.
_VALUES = 26 * LANES
_ORIGINAL = _VALUES + PANEL * LANES
_TARGETS = _ORIGINAL + PANEL * LANES
_ERROR = _TARGETS + 2 * PANEL * LANES
_SUM = _ERROR + 8 * LANES  # where a loop's sums are: rows at constant places compile to vector instructions
_HELD = _SUM + LANES  # infinite where a point is no codeword
_COST = _HELD + LANES
_BRANCHES = _COST + LANES
_BRANCH = 9 * LANES


@njit(**OPTIONS)
def search_panel(t, W, cost, alive, L, blocks, multipliers, q, limit, index, parent):  # type: ignore[no-untyped-def]
    """Chooses the blocks of one panel for every row, all in units of v.

    Args:
        t: (rows, paths, width) float32, targets with the feedback of the columns after the panel; v when it returns.
        W: (rows, width) float32, targets without feedback.
        cost: (rows, paths) float32, of the columns after the panel; with those of the panel when it returns.
        alive: paths that are in use.
        L: (width, width) float32, the panel's part of the feedback, unit block-lower-triangular.
        blocks: (width/8, 8, 8) float32, the panel's diagonal blocks C_b of C, H + J = C·Cᵀ.
        multipliers: (k,) float32.
        q, limit: float32.
        index: (rows, paths, width/8) uint8, filled: numbers of multipliers; OVERLOADED where a block was clipped.
        parent: (rows, paths) int64, filled: the path from before the panel that each path goes on.

    Returns:
        paths that are in use now, the same for every row.
    """
    rows, paths, width = t.shape
    each = LANES // paths  # rows in a tile
    k = multipliers.shape[0]
    count = 2 * k if k <= FEW_MULTIPLIERS else k
    work = np.zeros(_BRANCHES + count * _BRANCH, np.float32)
    spare = np.zeros(_VALUES, np.float32)
    found, chosen = np.empty(count * paths, np.float32), np.empty(count * paths + 1, np.int64)
    came, mark = np.zeros((width // 8, LANES), np.int64), np.empty((width // 8, LANES), np.uint8)
    clipped, start = np.zeros(LANES, np.bool_), alive
    for first in range(0, rows, each):
        own, alive = min(each, rows - first), start
        _load(work, t, W, cost, first, own, alive)
        for b in range(width // 8 - 1, -1, -1):
            old = _TARGETS + ((b + 1) & 1) * PANEL * LANES
            new = _TARGETS + (b & 1) * PANEL * LANES
            for i in range(8):
                _copy(work, i * LANES, old + (8 * b + i) * LANES)
            _branch(work, blocks[b], multipliers, q, limit, count)
            _mend(work, blocks[b], multipliers[k - 1], q, limit, count, spare, clipped)
            kept = min(paths, count * alive)
            for row in range(own):
                base = row * paths
                for c in range(count):
                    for path in range(alive):
                        found[c * alive + path] = work[_BRANCHES + c * _BRANCH + base + path]
                choose(found, count * alive, paths, chosen)
                for path in range(kept):
                    c, source, lane = chosen[path] // alive, base + chosen[path] % alive, base + path
                    came[b, lane] = source
                    mark[b, lane] = OVERLOADED if clipped[source] and c == 0 else c % k
                    work[_COST + lane] = found[chosen[path]]
                    for i in range(8):
                        at = _BRANCHES + c * _BRANCH + (1 + i) * LANES
                        work[_VALUES + (8 * b + i) * LANES + lane] = work[at + source]
            alive = kept
            _feed_back(work, old, new, L, b, came[b])
        _store(work, t, cost, index, parent, came, mark, first, own, alive)
    return alive


@njit(**OPTIONS)
def _load(work, t, W, cost, first, own, alive):  # type: ignore[no-untyped-def]
    """Rows first … first + own into a tile; targets go to the copy that the last block reads."""
    paths, width = t.shape[1], t.shape[2]
    targets = _TARGETS + ((width // 8) & 1) * PANEL * LANES
    work[_ORIGINAL:_COST] = ZERO
    work[_COST : _COST + LANES] = INFINITY
    for row in range(own):
        for path in range(paths):
            lane = row * paths + path
            for column in range(width):
                work[_ORIGINAL + column * LANES + lane] = W[first + row, column]
            if path < alive:
                work[_COST + lane] = cost[first + row, path]
                for column in range(width):
                    work[targets + column * LANES + lane] = t[first + row, path, column]


@njit(**LANE)
def _copy(work, to, at):  # type: ignore[no-untyped-def]
    for lane in range(LANES):
        work[to + lane] = work[at + lane]


@njit(**OPTIONS)
def _branch(work, block, multipliers, q, limit, count):  # type: ignore[no-untyped-def]
    """Values and costs of all branches of the targets in a tile; infinite where a point is no codeword or is a second
    branch to the same one."""
    k = multipliers.shape[0]
    for c in range(count):
        m = multipliers[c % k]
        bound, at = np.floor(limit / m) + HALF, _BRANCHES + c * _BRANCH
        if c < k:
            for lane in range(LANES):
                work[_HELD + lane] = nearest(work, lane, m, q, bound)
        else:
            for lane in range(LANES):
                work[_HELD + lane] = nearest(work, lane, m, q, bound, True)
        _measure(work, block)
        _copy(work, at, _SUM)
        for i in range(8):
            _copy(work, at + (1 + i) * LANES, POINT + i * LANES)
        for before in range(c):
            _drop_equal(work, at, _BRANCHES + before * _BRANCH)


@njit(**LANE)
def _drop_equal(work, at, before):  # type: ignore[no-untyped-def]
    for lane in range(LANES):
        cost = work[at + lane]
        work[at + lane] = INFINITY if cost == work[before + lane] else cost


@njit(**OPTIONS)
def _measure(work, block):  # type: ignore[no-untyped-def]
    """To the row _SUM the cost of each path with the points in the rows of POINT, ‖(t − v)·C_b‖² more than before;
    infinite where they are no codewords."""
    for i in range(8):
        for lane in range(LANES):
            work[_ERROR + i * LANES + lane] = work[i * LANES + lane] - work[POINT + i * LANES + lane]
    for lane in range(LANES):
        work[_SUM + lane] = work[_COST + lane]
    for j in range(8):
        _add_square(work, *_column(block, 0, j))
    for lane in range(LANES):
        work[_SUM + lane] = INFINITY if work[_HELD + lane] == INFINITY else work[_SUM + lane]


@njit(**LANE)
def _column(of, first, j):  # type: ignore[no-untyped-def]
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
def _dot(work, lane, a, b, c, d, e, f, g, h):  # type: ignore[no-untyped-def]
    at = _ERROR + lane
    low = work[at] * a + work[at + LANES] * b + work[at + 2 * LANES] * c + work[at + 3 * LANES] * d
    at += 4 * LANES
    return low + (work[at] * e + work[at + LANES] * f + work[at + 2 * LANES] * g + work[at + 3 * LANES] * h)


@njit(**LANE)
def _add_square(work, a, b, c, d, e, f, g, h):  # type: ignore[no-untyped-def]
    for lane in range(LANES):
        part = _dot(work, lane, a, b, c, d, e, f, g, h)
        work[_SUM + lane] += part * part


@njit(**LANE)
def _add_dot(work, a, b, c, d, e, f, g, h):  # type: ignore[no-untyped-def]
    for lane in range(LANES):
        work[_SUM + lane] += _dot(work, lane, a, b, c, d, e, f, g, h)


@njit(**OPTIONS)
def _mend(work, block, m, q, limit, count, spare, clipped):  # type: ignore[no-untyped-def]
    """Where a path has no branch left, the first becomes the target clipped as rounding clips it."""
    clipped[:] = False
    for lane in range(LANES):
        work[_SUM + lane] = INFINITY
    for c in range(count):
        _copy(work, _HELD, _BRANCHES + c * _BRANCH)
        for lane in range(LANES):
            work[_SUM + lane] = min(work[_SUM + lane], work[_HELD + lane])
    lost = 0
    for lane in range(LANES):
        lost += (work[_SUM + lane] == INFINITY) & (work[_COST + lane] < INFINITY)
    if lost == 0:
        return
    for lane in range(LANES):
        clipped[lane] = (work[_SUM + lane] == INFINITY) & (work[_COST + lane] < INFINITY)
        if clipped[lane]:
            clip(work, lane, m, q, limit, spare)
    for lane in range(LANES):
        work[_HELD + lane] = ZERO
    for i in range(8):
        _copy(work, POINT + i * LANES, CHOSEN + i * LANES)
    _measure(work, block)
    for lane in range(LANES):
        if clipped[lane]:
            work[_BRANCHES + lane] = work[_SUM + lane]
            for i in range(8):
                work[_BRANCHES + (1 + i) * LANES + lane] = work[CHOSEN + i * LANES + lane]


@njit(**OPTIONS)
def _feed_back(work, old, new, L, b, came):  # type: ignore[no-untyped-def]
    """The targets of the columns before block b, for the paths that are kept: those of the path that each comes from,
    with the errors of the block fed back."""
    for i in range(8):
        value, original = _VALUES + (8 * b + i) * LANES, _ORIGINAL + (8 * b + i) * LANES
        for lane in range(LANES):
            work[_ERROR + i * LANES + lane] = work[original + lane] - work[value + lane]
    for column in range(8 * b):
        at = old + column * LANES
        for lane in range(LANES):
            work[_SUM + lane] = work[at + came[lane]]
        _add_dot(work, *_column(L, 8 * b, column))
        _copy(work, new + column * LANES, _SUM)


@njit(**OPTIONS)
def _store(work, t, cost, index, parent, came, mark, first, own, alive):  # type: ignore[no-untyped-def]
    """What was chosen, by going back from the first block of the panel to the last."""
    paths, width = t.shape[1], t.shape[2]
    for row in range(own):
        for path in range(alive):
            lane = row * paths + path
            cost[first + row, path] = work[_COST + lane]
            for b in range(width // 8):
                index[first + row, path, b] = mark[b, lane]
                for i in range(8):
                    t[first + row, path, 8 * b + i] = work[_VALUES + (8 * b + i) * LANES + lane]
                lane = came[b, lane]
            parent[first + row, path] = lane - row * paths
