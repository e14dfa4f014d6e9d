"""The K-best search of nested codes over blocks of a row, last block first. Compiled by Numba.

A path is a choice for all blocks so far. Under each multiplier it branches to the nearest lattice point of its target
(with few multipliers also to that of the other coset of D8). The paths with the smallest Σ‖(t − v)·C_b‖² survive.
`beam_tile` has the tile and what moves within it.
"""

import numpy as np

from ..contract.constants import FEW_MULTIPLIERS, OVERLOADED, PANEL
from .beam_tile import (
    BRANCH,
    BRANCHES,
    COST,
    ERROR,
    HELD,
    SUM,
    TARGETS,
    VALUES,
    add_square,
    column_of,
    copy_row,
    feed_back,
    load,
    store,
)
from .e8 import HALF, INFINITY, LANE, LANES, OPTIONS, POINT, ZERO, nearest
from .encode import CHOSEN, clip
from .jit import njit
from .lattice_beam import choose


@njit(**OPTIONS)
def search_panel(t, W, cost, alive, L, blocks, multipliers, q, limit, index, parent):
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
        parent: (rows, paths) int64, filled: the path from before the panel that each path continues.

    Returns:
        paths that are in use now, the same for every row.
    """
    rows, paths, width = t.shape
    rows_of_tile = LANES // paths  # rows in a tile
    k = multipliers.shape[0]
    count = 2 * k if k <= FEW_MULTIPLIERS else k
    work = np.zeros(BRANCHES + count * BRANCH, np.float32)
    spare = np.zeros(VALUES, np.float32)
    found, chosen = np.empty(count * paths, np.float32), np.empty(count * paths + 1, np.int64)
    came, mark = np.zeros((width // 8, LANES), np.int64), np.empty((width // 8, LANES), np.uint8)
    clipped, start = np.zeros(LANES, np.bool_), alive
    for first in range(0, rows, rows_of_tile):
        rows_here, alive = min(rows_of_tile, rows - first), start
        load(work, t, W, cost, first, rows_here, alive)
        for b in range(width // 8 - 1, -1, -1):
            old = TARGETS + ((b + 1) & 1) * PANEL * LANES
            new = TARGETS + (b & 1) * PANEL * LANES
            for i in range(8):
                copy_row(work, i * LANES, old + (8 * b + i) * LANES)
            _branch(work, blocks[b], multipliers, q, limit, count)
            _clip_lost(work, blocks[b], multipliers[k - 1], q, limit, count, spare, clipped)
            kept = min(paths, count * alive)
            for row in range(rows_here):
                base = row * paths
                for c in range(count):
                    for path in range(alive):
                        found[c * alive + path] = work[BRANCHES + c * BRANCH + base + path]
                choose(found, count * alive, paths, chosen)
                for path in range(kept):
                    c, source, lane = chosen[path] // alive, base + chosen[path] % alive, base + path
                    came[b, lane] = source
                    mark[b, lane] = OVERLOADED if clipped[source] and c == 0 else c % k
                    work[COST + lane] = found[chosen[path]]
                    for i in range(8):
                        at = BRANCHES + c * BRANCH + (1 + i) * LANES
                        work[VALUES + (8 * b + i) * LANES + lane] = work[at + source]
            alive = kept
            feed_back(work, old, new, L, b, came[b])
        store(work, t, cost, index, parent, came, mark, first, rows_here, alive)
    return alive


@njit(**OPTIONS)
def _branch(work, block, multipliers, q, limit, count):
    """Values and costs of all branches of the targets in a tile; infinite where a point is no codeword or is a second
    branch to the same one."""
    k = multipliers.shape[0]
    for c in range(count):
        m = multipliers[c % k]
        bound, at = np.floor(limit / m) + HALF, BRANCHES + c * BRANCH
        if c < k:
            for lane in range(LANES):
                work[HELD + lane] = nearest(work, lane, m, q, bound)
        else:
            for lane in range(LANES):
                work[HELD + lane] = nearest(work, lane, m, q, bound, True)
        _measure(work, block)
        copy_row(work, at, SUM)
        for i in range(8):
            copy_row(work, at + (1 + i) * LANES, POINT + i * LANES)
        for before in range(c):
            _drop_equal(work, at, BRANCHES + before * BRANCH)


@njit(**LANE)
def _drop_equal(work, at, before):
    for lane in range(LANES):
        cost = work[at + lane]
        work[at + lane] = INFINITY if cost == work[before + lane] else cost


@njit(**OPTIONS)
def _measure(work, block):
    """To the row SUM the cost of each path with the points in the rows of POINT, ‖(t − v)·C_b‖² more than before;
    infinite where they are no codewords."""
    for i in range(8):
        for lane in range(LANES):
            work[ERROR + i * LANES + lane] = work[i * LANES + lane] - work[POINT + i * LANES + lane]
    for lane in range(LANES):
        work[SUM + lane] = work[COST + lane]
    for j in range(8):
        add_square(work, *column_of(block, 0, j))
    for lane in range(LANES):
        work[SUM + lane] = INFINITY if work[HELD + lane] == INFINITY else work[SUM + lane]


@njit(**OPTIONS)
def _clip_lost(work, block, m, q, limit, count, spare, clipped):
    """Where a path has no branch left, the first becomes the target clipped as rounding clips it."""
    clipped[:] = False
    for lane in range(LANES):
        work[SUM + lane] = INFINITY
    for c in range(count):
        copy_row(work, HELD, BRANCHES + c * BRANCH)
        for lane in range(LANES):
            work[SUM + lane] = min(work[SUM + lane], work[HELD + lane])
    lost = 0
    for lane in range(LANES):
        lost += (work[SUM + lane] == INFINITY) & (work[COST + lane] < INFINITY)
    if lost == 0:
        return
    for lane in range(LANES):
        clipped[lane] = (work[SUM + lane] == INFINITY) & (work[COST + lane] < INFINITY)
        if clipped[lane]:
            clip(work, lane, m, q, limit, spare)
    for lane in range(LANES):
        work[HELD + lane] = ZERO
    for i in range(8):
        copy_row(work, POINT + i * LANES, CHOSEN + i * LANES)
    _measure(work, block)
    for lane in range(LANES):
        if clipped[lane]:
            work[BRANCHES + lane] = work[SUM + lane]
            for i in range(8):
                work[BRANCHES + (1 + i) * LANES + lane] = work[CHOSEN + i * LANES + lane]
