"""The state of a tuning: the rate of each step, the best parameters, and what a saved one goes on to."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nestquant_cli.storage.records import Snapshot
from nestquant_cli.tuning.optimizer import TuneState
from nestquant_cli.tuning.settings import TuneSettings
from tests.families import gaussian

SETTINGS = TuneSettings(steps=6, rate=0.01)


def test_a_constant_gradient_moves_each_parameter_by_the_rate_of_its_step() -> None:
    settings = TuneSettings(steps=40, rate=0.01)
    state, gradient = TuneState(8, settings), gaussian(8)
    for step in range(settings.steps):
        before = state.theta.clone()
        state.step(gradient.clone(), 1.0)
        moved = settings.rate * settings.rate_factor(step) * gradient.sign()
        assert torch.allclose(before - state.theta, moved, rtol=1e-4, atol=1e-9)
    assert state.done == 40


def test_old_gradients_are_forgotten_at_their_rates() -> None:
    """Adam (arXiv 1412.6980) in float64, as its paper writes it, with the moments' rates 0.9 and 0.99."""
    settings = TuneSettings(steps=30, rate=0.05)
    state, theta, mean, square = TuneState(8, settings), *torch.zeros(3, 8, dtype=torch.float64)
    for step in range(settings.steps):
        gradient = gaussian(8, seed=step) * 10.0 ** (step % 3 - 6)  # as small as those of a mean over many tokens
        state.step(gradient, 1.0)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient.double().square()
        unbiased = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.99 ** (step + 1))
        theta = theta - settings.rate * settings.rate_factor(step) * unbiased[0] / (unbiased[1].sqrt() + 1e-12)
        assert torch.allclose(state.theta.double(), theta, rtol=1e-5, atol=1e-7)


def test_the_best_parameters_are_kept() -> None:
    state = TuneState(2, SETTINGS)
    seen = []
    for loss in (3.0, 1.0, 2.0):
        state.step(torch.ones(2), loss)
        state.check(loss)
        seen.append(state.theta.clone())
    assert torch.equal(state.best, seen[1]) and state.best_loss == 1.0
    assert state.record() == {"loss_before": 3.0, "loss_after": 1.0, "checks": [(1, 3.0), (2, 1.0), (3, 2.0)]}


@pytest.mark.parametrize("cut", range(SETTINGS.steps + 1))
def test_a_saved_state_goes_on_to_the_same_bits(cut: int, tmp_path: Path) -> None:
    def advance(state: TuneState, first: int, last: int) -> None:
        for number in range(first, last):
            state.step(gaussian(8, seed=number), 0.25 * number)
            if number % 2:
                state.check(1 / (number + 1))

    whole, before, after = (TuneState(8, SETTINGS) for _ in range(3))
    advance(whole, 0, SETTINGS.steps)
    advance(before, 0, cut)
    snapshot = Snapshot(tmp_path / "state")
    snapshot.save(before.state_dict())
    assert after.load_state_dict(snapshot.load() or {}) and after.done == cut
    advance(after, cut, SETTINGS.steps)
    assert torch.equal(after.theta, whole.theta) and torch.equal(after.best, whole.best)
    assert (after.done, after.losses, after.checks) == (whole.done, whole.losses, whole.checks)
    Snapshot(tmp_path / "after").save(after.state_dict())
    Snapshot(tmp_path / "whole").save(whole.state_dict())
    assert (tmp_path / "after").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("change", [lambda state: state | {"theta": torch.ones(9)}, lambda state: {}])
def test_a_state_of_other_parameters_is_not_used(change: Any) -> None:
    state, fresh = TuneState(8, SETTINGS), TuneState(8, SETTINGS)
    state.step(gaussian(8), 1.0)
    assert not fresh.load_state_dict(change(state.state_dict()))
    assert fresh.done == 0 and torch.equal(fresh.theta, torch.zeros(8)) and fresh.checks == []
