"""The state of a tuning: the optimizer's numbers and the best parameters so far, saved whole or not at all."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import replacing

_MOMENTUM, _SPREAD, _SMALLEST = 0.9, 0.99, 1e-12


@dataclass
class TuneState:
    """Adam (arXiv 1412.6980) on one vector.

    Attributes:
        theta, mean, square: (count,) float32, the parameters and running means of their gradients and of its squares.
        best: θ with the least held-out loss.
        done: steps taken.
        losses: of the steps since the last check.
        checks: steps done and held-out loss of each check.
    """

    theta: Tensor
    mean: Tensor
    square: Tensor
    best: Tensor
    done: int = 0
    losses: list[float] = field(default_factory=list)
    checks: list[tuple[int, float]] = field(default_factory=list)

    @staticmethod
    def start(count: int) -> "TuneState":
        """Before the first step."""
        return TuneState(torch.zeros(count), torch.zeros(count), torch.zeros(count), torch.zeros(count))

    def step(self, gradient: Tensor, loss: float, rate: float) -> None:
        """One step of Adam, with the gradient (count,) of `loss`."""
        self.done += 1
        self.losses.append(loss)
        self.mean.lerp_(gradient, 1 - _MOMENTUM)
        self.square.lerp_(gradient.square(), 1 - _SPREAD)
        mean = self.mean / (1 - _MOMENTUM**self.done)
        square = self.square / (1 - _SPREAD**self.done)
        self.theta = self.theta - rate * mean / (square.sqrt() + _SMALLEST)

    def check(self, loss: float) -> None:
        """Notes a held-out loss of θ as it is, and keeps θ if there was no better one."""
        if not self.checks or loss < self.best_loss:
            self.best = self.theta.clone()
        self.checks.append((self.done, loss))
        self.losses = []

    @property
    def mean_loss(self) -> float | None:
        """Of the steps since the last check; None where there was none."""
        return sum(self.losses) / len(self.losses) if self.losses else None

    @property
    def best_loss(self) -> float:
        """The least held-out loss."""
        return min(loss for _, loss in self.checks)

    def save(self, path: Path) -> None:
        """Writes the state, atomically."""
        tensors = {name: getattr(self, name) for name in ("theta", "mean", "square", "best")}
        numbers = {"done": self.done, "losses": self.losses, "checks": self.checks}
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"numbers": json.dumps(numbers)})

    @staticmethod
    def load(path: Path, count: int) -> "TuneState | None":
        """The saved state of `count` parameters; None where there is none that can be used."""
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                numbers = json.loads(file.metadata()["numbers"])
        except (SafetensorError, OSError, KeyError, ValueError):
            return None
        numbers["checks"] = [(done, loss) for done, loss in numbers["checks"]]
        state = TuneState(**tensors, **numbers)
        return state if state.theta.shape == (count,) else None

    def record(self) -> dict[str, Any]:
        """JSON-ready, for the report."""
        return {"loss_before": self.checks[0][1], "loss_after": self.best_loss, "checks": self.checks}
