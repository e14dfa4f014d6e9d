import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nestquant_cli.calibration import gram
from nestquant_cli.calibration.gram import CrossSum, GramSum, on_grid
from nestquant_cli.kernels import for_device
from nestquant_cli.kernels.contract.constants import EMPTY, INFINITE
from nestquant_cli.rotation.transform import rotation
from tests.families import gaussian

CPU = torch.device("cpu")
SEED = 3
to_grid = for_device(CPU).to_grid


def tokens_of_many_sizes(count: int, features: int, seed: int = 0) -> Tensor:
    """Most are alike, some are small, one is a thousand times as large, one is zero, and channels are not alike."""
    x = gaussian(count, features, seed=seed) * torch.linspace(0.1, 5, features)
    x[::7] *= 0.02
    x[1] *= 1000
    x[2] = 0
    return x


@pytest.mark.parametrize("features", [8, 20, 72, 576])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_mean_is_that_of_tokens_on_their_grids(features: int, dtype: torch.dtype) -> None:
    x = tokens_of_many_sizes(70, features).to(dtype)
    x[::7] = x[1::7]  # no token is far below the most common step, where it would be rounded to that
    gram = GramSum(features, SEED, CPU)
    for part in x.split(30):
        gram.add(gram.grid(part))
    v, exponent = to_grid(x, gram.order, SEED)
    y = v.double() * torch.exp2(exponent.double())[:, None] * (exponent != EMPTY)[:, None]
    mean = gram.mean()
    assert gram.tokens == 70 and gram.finite
    assert torch.equal(mean, mean.t())
    torch.testing.assert_close(mean.double(), y.t() @ y / 70, rtol=1e-2, atol=1e-3 * float(mean.diagonal().mean()))


def test_rounding_adds_little_noise_that_is_nearly_white() -> None:
    x = gaussian(4000, 64) * torch.linspace(0.1, 5, 64)
    y = rotation(64, SEED).apply(x).double()
    wanted = y.t() @ y / len(y)
    extra = GramSum_of(x).mean().double() - wanted
    assert 0 < float(extra.diagonal().mean() / wanted.diagonal().mean()) < 1e-3
    assert torch.linalg.matrix_norm(extra, 2) < 1e-2 * wanted.diagonal().mean()


def test_small_tokens_are_not_lost_beside_a_large_one() -> None:
    x = tokens_of_many_sizes(200, 64)
    x[1] /= 1000
    alone, beside = GramSum(64, SEED, CPU), GramSum(64, SEED, CPU)
    alone.add(alone.grid(x))
    large = 1e4 * gaussian(1, 64)
    beside.add(beside.grid(torch.cat([x, large])))
    beside.upper.entries.sub_(GramSum_of(large).upper.entries)
    assert torch.equal(beside.upper.entries, alone.upper.entries)


def GramSum_of(x: Tensor) -> GramSum:  # noqa: N802 - reads as the class
    gram = GramSum(x.shape[1], SEED, CPU)
    gram.add(gram.grid(x))
    return gram


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(6)), st.integers(1, 5), st.sampled_from([1, 90, gram.TOGETHER]))
def test_sums_do_not_depend_on_the_order_of_windows_or_on_who_adds_them(
    order: list[int], cut: int, together: int
) -> None:
    windows = [tokens_of_many_sizes(40, 24, seed) for seed in range(6)]
    whole, mine, theirs = (GramSum(24, SEED, CPU, count) for count in (gram.TOGETHER, together, together))
    for window in windows:
        whole.add(whole.grid(window))
    for place, number in enumerate(order):
        (mine if place < cut else theirs).add(whole.grid(windows[number]))
    assert torch.equal(mine.upper.entries + theirs.upper.entries, whole.upper.entries)


def test_each_token_gets_the_least_step_that_reaches_it() -> None:
    x = tokens_of_many_sizes(50, 40)
    v, exponent = to_grid(x, 40, SEED)
    y = rotation(40, SEED).apply(x)
    live = exponent != EMPTY
    assert (~live).nonzero().flatten().tolist() == [2]
    assert not (exponent[live] % 2).any()
    largest = v[live].abs().amax(1)
    assert largest.max() <= 127 and largest.min() >= 31
    step = torch.exp2(exponent.float())[:, None]
    assert ((y - v.float() * step).abs() <= 0.501 * step)[live].all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_token_that_is_not_finite_is_found(bad: float) -> None:
    x = gaussian(40, 16)
    x[33, 5] = bad
    assert int(to_grid(x, 16, SEED)[1][33]) == INFINITE
    gram = GramSum(16, SEED, CPU)
    gram.add(gram.grid(x))
    assert not gram.finite


def test_the_compiled_grid_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    from nestquant_cli.kernels.cpu import inputs as cpu_input

    x = tokens_of_many_sizes(50, 576)
    x[5, 3] = float("nan")
    fast, fast_exponent = to_grid(x, 576, SEED)
    monkeypatch.setattr(cpu_input, "plan_of", lambda *_: None)
    slow, slow_exponent = to_grid(x, 576, SEED)
    assert torch.equal(fast_exponent, slow_exponent)
    live = (fast_exponent != EMPTY) & (fast_exponent != INFINITE)
    assert (fast[live].int() - slow[live].int()).abs().max() <= 1  # sums of the rotation are ordered differently
    assert (fast[live] != slow[live]).float().mean() < 0.01


@pytest.mark.parametrize("features", [8, 20, 576])
def test_cross_sums_are_those_of_tokens_on_their_grids(features: int) -> None:
    x, y = tokens_of_many_sizes(70, features), tokens_of_many_sizes(70, features, seed=1)
    y[5] = 0
    for tokens in (x, y):
        tokens[::7] = tokens[1::7]  # no token is far below the most common step, where it would be rounded to that
    cross = CrossSum(features + -features % 8, CPU)
    for some, others in zip(x.split(30), y.split(30), strict=True):
        cross.add(*(on_grid(tokens, cross.order, SEED) for tokens in (some, others)))
    grids = []
    for tokens in (x, y):
        v, exponent = to_grid(tokens, cross.order, SEED)
        grids.append(v.double() * torch.exp2(exponent.double())[:, None] * (exponent != EMPTY)[:, None])
    mean = cross.mean()
    assert cross.pairs == 70 and cross.finite and mean.dtype == torch.float32
    size = float(torch.stack([(grid.t() @ grid).diagonal().mean() / 70 for grid in grids]).max())
    torch.testing.assert_close(mean.double(), grids[0].t() @ grids[1] / 70, rtol=1e-2, atol=1e-3 * size)


def test_the_cross_sum_of_tokens_with_themselves_is_their_sum() -> None:
    x = tokens_of_many_sizes(200, 24)
    cross = CrossSum(24, CPU)
    cross.add(on_grid(x, 24, SEED), on_grid(x, 24, SEED))
    assert torch.equal(cross.total.flatten(), GramSum_of(x).upper.entries)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(6)), st.integers(1, 5))
def test_cross_sums_of_two_widths_do_not_depend_on_the_order_or_on_who_adds_them(order: list[int], cut: int) -> None:
    pairs = [
        (on_grid(tokens_of_many_sizes(40, 20, seed), 24, SEED), on_grid(gaussian(40, 64, seed=seed + 6), 64, SEED))
        for seed in range(6)
    ]
    whole, mine, theirs = (CrossSum(64, CPU, 24) for _ in range(3))
    for pair in pairs:
        whole.add(*pair)
    for place, number in enumerate(order):
        (mine if place < cut else theirs).add(*pairs[number])
    assert whole.total.shape == (24, 64) and torch.equal(mine.total + theirs.total, whole.total)
    x, y = (
        torch.cat([grid.v * torch.exp2(grid.exponent.double())[:, None] for grid in side])
        for side in zip(*pairs, strict=True)
    )
    torch.testing.assert_close(whole.mean().double(), x.t() @ y / 240, rtol=1e-5, atol=1e-5)


def test_a_pair_that_is_not_finite_is_told() -> None:
    x, y = tokens_of_many_sizes(9, 24), tokens_of_many_sizes(9, 24)
    y[3, 2] = torch.inf
    cross = CrossSum(24, CPU)
    cross.add(on_grid(x, 24, SEED), on_grid(y, 24, SEED))
    assert not cross.finite
