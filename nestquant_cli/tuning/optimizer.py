"""The state of a tuning: the optimizer and the best parameters so far."""

from typing import Any

import torch
from torch import Tensor

from .settings import TuneSettings

_BETAS, _EPSILON = (0.9, 0.99), 1e-12  # gradients of a mean KL divergence are small


class TuneState:
    """Adam (arXiv 1412.6980) on one vector θ that starts at 0, at the rate that the settings give each step.

    Args:
        count: number of parameters.
        settings: steps and highest rate.

    Attributes:
        best: (count,) float32, θ with the least held-out loss.
        losses: losses of the steps since the last check.
        checks: steps done and held-out loss of each check.
    """

    def __init__(self, count: int, settings: TuneSettings) -> None:
        self._parameter = torch.zeros(count, requires_grad=True)
        self._optimizer = torch.optim.Adam([self._parameter], lr=settings.rate, betas=_BETAS, eps=_EPSILON)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, settings.rate_factor)
        self.best = torch.zeros(count)
        self.losses: list[float] = []
        self.checks: list[tuple[int, float]] = []

    @property
    def theta(self) -> Tensor:
        """The parameters (count,) float32; a view, which the next step changes."""
        return self._parameter.detach()

    @property
    def done(self) -> int:
        """Steps taken."""
        return self._schedule.last_epoch

    def step(self, gradient: Tensor, loss: float) -> None:
        """Takes one step, with the gradient (count,) of `loss`."""
        self._parameter.grad = gradient
        self._optimizer.step()
        self._schedule.step()
        self.losses.append(loss)

    def check(self, loss: float) -> None:
        """Notes a held-out loss of θ, and keeps θ as the best if no earlier loss was as low."""
        if not self.checks or loss < self.best_loss:
            self.best = self.theta.clone()
        self.checks.append((self.done, loss))
        self.losses = []

    @property
    def mean_loss(self) -> float | None:
        """Mean loss of the steps since the last check; None where there was none."""
        return sum(self.losses) / len(self.losses) if self.losses else None

    @property
    def best_loss(self) -> float:
        """The least held-out loss."""
        return min(loss for _, loss in self.checks)

    def state_dict(self) -> dict[str, Any]:
        """All of the state, for `storage.records.Snapshot`."""
        return {
            "theta": self.theta,
            "best": self.best,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "losses": self.losses,
            "checks": self.checks,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> bool:
        """Resumes from a saved state; False, with nothing changed, where it has not as many parameters."""
        theta = saved.get("theta")
        if not isinstance(theta, Tensor) or theta.shape != self.theta.shape:
            return False
        self.theta.copy_(theta)
        self._optimizer.load_state_dict(saved["optimizer"])
        self._schedule.load_state_dict(saved["schedule"])
        self.best, self.losses, self.checks = saved["best"], saved["losses"], saved["checks"]
        return True

    def record(self) -> dict[str, Any]:
        """JSON-ready, for the report."""
        return {"loss_before": self.checks[0][1], "loss_after": self.best_loss, "checks": self.checks}
