"""Settings of a tuning, validated, from the command line, a recipe or Python."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..base.errors import NestQuantError
from ..base.names import refuse_unknown

_NOTHING = "nothing was tuned"
_INTEGERS = {
    "steps": (1, 1 << 24),
    "seqlen": (2, 1 << 20),
    "batch": (1, 1 << 16),
    "held_out": (1, 1 << 16),
    "checks": (1, 1 << 16),
}


@dataclass(frozen=True)
class TuneSettings:
    """Settings of one tuning.

    Attributes:
        steps: number of steps of Adam. With 300 steps on W4A4KV4 the best held-out loss came after 188.
        seqlen: tokens in a window.
        batch: windows a step.
        rate: highest learning rate. Parameters move in units of their own size, so one rate fits all. In short runs on
            W4A4KV4 held-out KL went from 0.268 to 0.292 in 40 steps at 0.01, to 0.227 at 0.003, and from 0.263 to 0.223
            in 60 steps at 0.001.
        held_out: windows that are not tuned on; their loss decides which state is kept.
        checks: number of evaluations on the held-out windows after the one at the start.

    Raises:
        NestQuantError: a setting is out of range or of the wrong type.
    """

    steps: int = 400
    seqlen: int = 512
    batch: int = 1
    rate: float = 0.001
    held_out: int = 8
    checks: int = 8

    def __post_init__(self) -> None:
        for name, (low, high) in _INTEGERS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise NestQuantError(
                    f"{name} {value} of the tuning is not an integer from {low} to {high}", _NOTHING, f"correct {name}"
                )
        if type(self.rate) not in (int, float) or not 0 < self.rate <= 1 or not math.isfinite(self.rate):
            raise NestQuantError(f"rate {self.rate} of the tuning is not in (0, 1]", _NOTHING, "use 0.001 or so")

    @staticmethod
    def from_dict(value: Any) -> "TuneSettings":
        """Reads settings by name; missing ones take their defaults.

        Raises:
            NestQuantError: not a mapping, or an unknown or unusable setting.
        """
        known = [field.name for field in dataclasses.fields(TuneSettings)]
        if not isinstance(value, Mapping):
            raise NestQuantError(f"tune {value!r} is no mapping", _NOTHING, f"use some of {', '.join(known)}")
        refuse_unknown(value, known, "tune", _NOTHING)
        return TuneSettings(**value)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    def rate_factor(self, step: int) -> float:
        """Learning rate of step `step`, from 0, as a fraction of the highest: it rises linearly over the first tenth of
        the steps and falls to zero along a cosine."""
        warm = max(1, self.steps // 10)
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))

    def is_check(self, done: int) -> bool:
        """Whether the held-out windows are evaluated after `done` steps: `checks` times at even distances, and at the
        end."""
        return done == self.steps or done * self.checks // self.steps > (done - 1) * self.checks // self.steps
