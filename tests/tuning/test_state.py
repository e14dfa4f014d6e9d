"""The state of a tuning: Adam as torch has it, the best parameters, and a file that is whole or absent."""

from pathlib import Path

import torch

from nestquant_cli.tuning.state import TuneState
from tests.families import gaussian


def test_steps_are_those_of_adam() -> None:
    state, theta = TuneState.start(8), torch.zeros(8, requires_grad=True)
    adam = torch.optim.Adam([theta], lr=0.01, betas=(0.9, 0.99), eps=1e-12)
    for number in range(4):
        gradient = gaussian(8, seed=number)
        state.step(gradient, 1.0, 0.01)
        theta.grad = gradient
        adam.step()
    assert torch.allclose(state.theta, theta, atol=1e-6)


def test_the_best_parameters_are_kept() -> None:
    state = TuneState.start(2)
    for value, loss in ((1.0, 3.0), (2.0, 1.0), (3.0, 2.0)):
        state.theta = torch.full((2,), value)
        state.check(loss)
    assert torch.equal(state.best, torch.full((2,), 2.0)) and state.best_loss == 1.0
    assert state.record() == {"loss_before": 3.0, "loss_after": 1.0, "checks": [(0, 3.0), (0, 1.0), (0, 2.0)]}


def test_a_saved_state_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    state = TuneState.start(8)
    state.check(0.5)
    state.step(gaussian(8), 0.25, 0.01)
    state.save(tmp_path / "state")
    again = TuneState.load(tmp_path / "state", 8)
    assert again is not None
    assert (again.done, again.losses, again.checks) == (1, [0.25], [(0, 0.5)])
    for each in (state, again):
        each.step(gaussian(8, seed=1), 0.2, 0.01)
    assert torch.equal(state.theta, again.theta) and torch.equal(state.best, again.best)


def test_what_is_no_state_of_these_parameters_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "state"
    assert TuneState.load(path, 8) is None
    TuneState.start(8).save(path)
    assert TuneState.load(path, 9) is None
    path.write_bytes(path.read_bytes()[:-1])
    assert TuneState.load(path, 8) is None
