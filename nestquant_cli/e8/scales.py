"""Chooses the k scales of a union of Voronoi codes: the dynamic programme of arXiv 2502.09720 (§4.3), then exchanges.

The programme takes a block to be encoded by the smallest chosen scale that holds it, which makes the cost of a set a
sum over neighbours and the best set a shortest path. The encoder does better: it takes the scale with the smallest
error. So the path's set is then improved by exchanges under that error.
"""

import numpy as np
from numpy.typing import NDArray

Errors = NDArray[np.float32]


def mean_error(errors: Errors, penalty: Errors, chosen: list[int]) -> float:
    """Mean error over blocks, each under the chosen scale with the smallest one; a block that overloads all of them has
    the penalty of the largest.

    Args:
        errors, penalty: (blocks, candidates), as `shortest_path` takes them.
        chosen: numbers of the chosen candidates.
    """
    best = errors[:, chosen].min(axis=1)
    return float(np.where(np.isfinite(best), best, penalty[:, max(chosen)]).mean(dtype=np.float64))


def shortest_path(errors: Errors, penalty: Errors, k: int) -> list[int]:
    """The dynamic programme: the k candidates with the smallest cost when each block takes the first that holds it.

    Args:
        errors: (blocks, candidates) error of each block under each candidate, candidates in ascending order of scale,
            infinite where the block overloads.
        penalty: (blocks, candidates) finite error of a block that no chosen candidate holds and that is clipped to
            the largest chosen one.
        k: number of candidates to choose; all are returned where there are fewer.

    Returns:
        numbers of the chosen candidates, ascending.
    """
    candidates = errors.shape[1]
    if k >= candidates:
        return list(range(candidates))
    valid = np.isfinite(errors)
    first = np.where(valid.any(axis=1), valid.argmax(axis=1), candidates)  # (blocks,) smallest scale that holds it
    filled = np.where(valid, errors, penalty).astype(np.float64)
    # added up in the order of their first scale: no matrix product, whose order may follow from a number of threads
    added = np.cumsum(filled[np.argsort(first, kind="stable")], axis=0)
    lost = np.where(first[:, None] > np.arange(candidates), penalty, 0)
    beyond = lost.sum(axis=0, dtype=np.float64)  # beyond[j]: penalty under j of the blocks with first > j

    within = np.cumsum(np.bincount(first, minlength=candidates))[:candidates]  # (candidates,) blocks with first ≤ i
    reach = np.where(within[:, None] > 0, added[within - 1], 0)  # reach[i, j]: error of those under j
    start = reach.diagonal().copy()
    step = start - reach  # step[i, j]: error under j of the blocks that j holds and i does not
    step[np.tril_indices(candidates)] = np.inf  # a path goes up
    best = start
    back: list[NDArray[np.int64]] = []
    for _ in range(k - 1):
        total = best[:, None] + step
        back.append(total.argmin(axis=0))
        best = total.min(axis=0)
    at = int((best + beyond).argmin())
    path = [at]
    for choice in reversed(back):
        at = int(choice[at])
        path.append(at)
    return sorted(set(path))


def exchange(errors: Errors, penalty: Errors, chosen: list[int], rounds: int = 8) -> list[int]:
    """Replaces one chosen candidate at a time by the best other one until the mean error no longer falls.

    Args:
        errors, penalty: (blocks, candidates), as `shortest_path` takes them.
        chosen: numbers of the chosen candidates.
        rounds: passes over the chosen candidates, at most.
    """
    current = mean_error(errors, penalty, chosen)
    for _ in range(rounds):
        improved = False
        for place in range(len(chosen)):
            rest = chosen[:place] + chosen[place + 1 :]
            held, clipped = errors, penalty
            if rest:
                largest = max(rest)
                held = np.minimum(errors, errors[:, rest].min(axis=1, keepdims=True))
                clipped = np.where(np.arange(errors.shape[1]) > largest, penalty, penalty[:, largest, None])
            trial = np.where(np.isfinite(held), held, clipped).mean(axis=0, dtype=np.float64)
            trial[rest] = np.inf
            new = int(trial.argmin())
            if trial[new] < current * (1 - 1e-6):
                chosen, current, improved = sorted([*rest, new]), float(trial[new]), True
        if not improved:
            break
    return chosen
