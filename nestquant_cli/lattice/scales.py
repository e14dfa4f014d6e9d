"""Which k scales a union of Voronoi codes should use: the dynamic programme of arXiv 2502.09720 (§4.3), then a polish.

The programme takes a block to be encoded by the smallest chosen scale that holds it, which makes the cost of a set a
sum over neighbours and the best set a shortest path. The encoder does better than that (it takes the scale of least
error), so the path's set is then improved by exchanges under the true objective.
"""

import numpy as np
from numpy.typing import NDArray

Errors = NDArray[np.float32]


def choose(errors: Errors, penalty: Errors, k: int) -> list[int]:
    """Indices of the k candidate scales with the least mean error.

    Args:
        errors: (blocks, candidates) error of each block under each candidate, candidates in ascending order of scale,
            infinite where the block overloads.
        penalty: (blocks,) finite error of a block that no chosen candidate holds.
        k: how many to choose; fewer come back when there are fewer candidates.

    Returns:
        ascending indices.
    """
    if k >= errors.shape[1]:
        return list(range(errors.shape[1]))
    return exchange(errors, penalty, shortest_path(errors, penalty, k))


def mean_error(errors: Errors, penalty: Errors, chosen: list[int]) -> float:
    """Mean over blocks of the least error among the chosen candidates, the penalty where all overload."""
    best = errors[:, chosen].min(axis=1)
    return float(np.where(np.isfinite(best), best, penalty).mean(dtype=np.float64))


def shortest_path(errors: Errors, penalty: Errors, k: int) -> list[int]:
    """The dynamic programme: k candidates of least cost when each block takes the first that holds it."""
    candidates = errors.shape[1]
    valid = np.isfinite(errors)
    first = np.where(valid.any(axis=1), valid.argmax(axis=1), candidates)  # (blocks,) smallest scale that holds it
    filled = np.where(valid, errors, penalty[:, None]).astype(np.float64)
    # held[f, j]: summed error under candidate j of the blocks whose first scale is f
    held = np.zeros((candidates + 1, candidates))
    np.add.at(held, first, filled)
    below = np.vstack([np.zeros(candidates), np.cumsum(held, axis=0)])  # below[f, j]: blocks with first < f
    lost = np.zeros(candidates + 1)
    np.add.at(lost, first, penalty.astype(np.float64))
    beyond = lost.sum() - np.cumsum(lost)  # beyond[j]: penalty of the blocks with first > j

    def cost(i: int, j: int) -> float:  # blocks that fit j but not i; i = −1 is the start
        return float(below[j + 1, j] - below[i + 1, j])

    best = np.array([cost(-1, j) for j in range(candidates)])
    back: list[NDArray[np.int64]] = []
    for _ in range(k - 1):
        step = np.full((candidates, candidates), np.inf)  # step[i, j]: reach j from i
        for j in range(1, candidates):
            for i in range(j):
                step[i, j] = best[i] + cost(i, j)
        back.append(step.argmin(axis=0))
        best = step.min(axis=0)
    at = int((best + beyond[:candidates]).argmin())
    path = [at]
    for choice in reversed(back):
        at = int(choice[at])
        path.append(at)
    return sorted(set(path))


def exchange(errors: Errors, penalty: Errors, chosen: list[int], rounds: int = 8) -> list[int]:
    """Replaces one chosen candidate at a time by the best other one until the true mean error no longer falls."""
    finite = np.where(np.isfinite(errors), errors, np.float32(1e30))
    current = mean_error(errors, penalty, chosen)
    for _ in range(rounds):
        improved = False
        for place in range(len(chosen)):
            rest = chosen[:place] + chosen[place + 1 :]
            ceiling = np.minimum(penalty, finite[:, rest].min(axis=1)) if rest else penalty
            trial = np.minimum(finite, ceiling[:, None]).mean(axis=0, dtype=np.float64)
            trial[rest] = np.inf
            new = int(trial.argmin())
            value = mean_error(errors, penalty, sorted([*rest, new]))
            if value < current * (1 - 1e-6):
                chosen, current, improved = sorted([*rest, new]), value, True
        if not improved:
            break
    return chosen
