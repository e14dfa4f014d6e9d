import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from nestquant_cli.e8.scales import exchange, mean_error, shortest_path

Floats = NDArray[np.float32]


def chosen(errors: np.ndarray, penalty: np.ndarray, k: int) -> list[int]:
    return exchange(errors, penalty, shortest_path(errors, penalty, k))


def instance(seed: int, blocks: int = 60, candidates: int = 8) -> tuple[Floats, Floats]:
    """Errors that grow with the scale, infinite below a scale of each block's own, with an exception here and there."""
    random = np.random.default_rng(seed)
    errors = (np.arange(1, candidates + 1) ** 2 * random.uniform(0.5, 1.5, (blocks, candidates))).astype(np.float32)
    first = random.integers(0, candidates + 1, blocks)
    errors[np.arange(candidates) < first[:, None]] = np.inf
    errors[random.random(errors.shape) < 0.02] = np.inf
    return errors, random.uniform(100, 200, (blocks, candidates)).astype(np.float32)


def path_cost(errors: Floats, penalty: Floats, chosen: list[int]) -> float:
    """What `shortest_path` minimises: a block takes the first chosen scale from the first on that holds it."""
    total = 0.0
    for row, lost in zip(errors, penalty, strict=True):
        holding = np.flatnonzero(np.isfinite(row))
        first = int(holding[0]) if holding.size else len(row)
        taken = next((j for j in chosen if j >= first), None)
        if taken is None:
            total += float(lost[chosen[-1]])
        else:
            total += float(row[taken] if np.isfinite(row[taken]) else lost[taken])
    return total


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_shortest_path_is_optimal(seed: int, k: int) -> None:
    errors, penalty = instance(seed)
    chosen = shortest_path(errors, penalty, k)
    assert len(chosen) == k
    costs = [path_cost(errors, penalty, list(subset)) for subset in itertools.combinations(range(errors.shape[1]), k)]
    assert path_cost(errors, penalty, chosen) == pytest.approx(min(costs), rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_exchange_never_makes_it_worse(seed: int) -> None:
    errors, penalty = instance(seed)
    start = sorted(np.random.default_rng(seed).choice(8, 3, replace=False).tolist())
    better = exchange(errors, penalty, start)
    assert better == sorted(set(better)) and len(better) == len(start)
    assert mean_error(errors, penalty, better) <= mean_error(errors, penalty, start)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_exchanged_path_is_near_the_best_subset(k: int) -> None:
    errors, penalty = instance(11, blocks=300)
    subsets = itertools.combinations(range(errors.shape[1]), k)
    least = min(mean_error(errors, penalty, list(subset)) for subset in subsets)
    assert mean_error(errors, penalty, chosen(errors, penalty, k)) <= 1.02 * least


def test_more_scales_are_never_worse() -> None:
    errors, penalty = instance(5, blocks=200, candidates=12)
    values = [mean_error(errors, penalty, chosen(errors, penalty, k)) for k in range(1, 13)]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(values))


def test_fewer_candidates_than_asked_for() -> None:
    errors, penalty = instance(0)
    assert chosen(errors, penalty, 8) == list(range(8))
    assert chosen(errors, penalty, 20) == list(range(8))


def test_blocks_that_nothing_holds_cost_their_penalty() -> None:
    errors = np.full((4, 3), np.inf, np.float32)
    penalty = np.array([1, 2, 3, 4], np.float32)[:, None] * np.array([9, 5, 1], np.float32)
    assert mean_error(errors, penalty, [0, 1]) == 12.5
    assert mean_error(errors, penalty, chosen(errors, penalty, 2)) == 2.5
