"""Collects one input of a decoder layer over the windows: its sums of outer products, and a sample of its tokens."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.errors import NestQuantError
from ..codecs.registry import fit_heads
from ..codecs.weights import Shape
from ..parallel.team import Team
from ..parallel.tiles import over_rows, run_pieces
from ..rotation.reflections import Reflections
from ..rotation.transform import rotation
from .current_window import choose, current_window, window_generator
from .gram import CrossSum, GramSum, Grid
from .statistics import InputStatistics

logger = logging.getLogger("nestquant")

_FEW = 64  # tokens that show of nearly every channel whether it is ever used


@dataclass(frozen=True)
class _Window:
    """What is kept of an input of one window.

    Attributes:
        grid: all its tokens.
        sample: (tokens, features) some of them.
        zero: channels that are zero in all of them; only those that were so before are looked at.
    """

    grid: Grid
    sample: Tensor
    zero: Tensor


class InputCollector:
    """Sums the outer products of one input over windows and keeps a sample of its tokens.

    Args:
        features: size of the input.
        tokens_per_window: how many tokens of each window are kept.
        seed: seed of the choice and of the rotation.
        device: device of the sum.
        first: number of the window that comes first; the choice in a window depends on its number.
        sequential: whether each window has two inputs: in the original model, and behind quantized layers.
    """

    def __init__(
        self,
        features: int,
        tokens_per_window: int,
        seed: int,
        device: torch.device,
        first: int = 0,
        sequential: bool = False,
    ) -> None:
        self.gram = GramSum(features, seed, device)
        self.cross = CrossSum(self.gram.order, device) if sequential else None
        self.features = features
        self.kept: list[Tensor] = []
        self.dead = torch.arange(features, device=device)  # channels that were always zero
        self._per_window = tokens_per_window
        self._seed, self._first, self._window = seed, first, first
        self._seen: dict[int, _Window] = {}
        self._original: dict[int, Tensor] = {}

    def add(self, x: Tensor) -> None:
        """x (..., features): the next window's input."""
        self.take({self._window - self._first: x})
        self.flush()

    def take(self, seen: dict[int, Tensor]) -> None:
        """Inputs (…, features) by the window of this process, for the next `flush`."""
        run_pieces(lambda window: self._see(window, seen[window]), seen)

    @torch.inference_mode()
    def _see(self, window: int, x: Tensor) -> None:
        """Takes from one input, on the thread that computes it, what the sums need."""
        number, tokens, dead = self._first + window, x.reshape(-1, self.features), self.dead
        rows = choose(tokens.shape[0], self._per_window, window_generator(self._seed, number))
        for some in (tokens[:_FEW], tokens):  # a few tokens leave hardly a channel to look at in all
            dead = dead[~some[:, dead].any(0)] if len(dead) else dead
        self._seen[number] = _Window(self.gram.grid(tokens), tokens[rows.to(tokens.device)], dead)

    def set_original(self, inputs: dict[int, Tensor]) -> None:
        """What the original model has in the place of the inputs that were taken, by the window of this process."""
        self._original = {self._first + window: x for window, x in inputs.items()}

    @torch.inference_mode()
    def flush(self) -> None:
        """Adds up what was seen, in the order of the windows."""
        for number in sorted(self._seen):
            seen = self._seen[number]
            if self.cross is not None:
                original = self.gram.grid(self._original[number].reshape(-1, self.features))
                self.cross.add(original, replace(seen.grid, v=seen.grid.v.clone()))
            self.gram.add(seen.grid)
            self.dead = seen.zero[torch.isin(seen.zero, self.dead)]
            self.kept.append(seen.sample)
        self._window += len(self._seen)
        self._seen, self._original = {}, {}

    @contextmanager
    def watch(self, linear: nn.Linear) -> Iterator[None]:
        """Takes every input of `linear` during the block for the next `flush`."""

        def see(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._see(current_window(), args[0])

        handle = linear.register_forward_pre_hook(see)
        try:
            yield
        finally:
            handle.remove()

    def join(self, team: Team) -> None:
        """Adds up what the processes of a team have seen: sums over all windows, samples in the order of windows."""
        team.sum(self.gram.upper)
        if self.cross is not None:
            team.sum(self.cross.total)
            pairs, sound = zip(*team.gather((self.cross.pairs, self.cross.finite)), strict=True)
            self.cross.pairs, self.cross.finite = sum(pairs), all(sound)  # what one refuses, all refuse
        everyone = team.gather((self.gram.tokens, self.gram.finite, self.dead.tolist(), [x.cpu() for x in self.kept]))
        tokens, finite, dead, kept = zip(*everyone, strict=True)
        self.gram.tokens, self.gram.finite = sum(tokens), all(finite)
        self.dead = torch.tensor(sorted(set(dead[0]).intersection(*dead[1:])), dtype=torch.int64)
        self.kept = [x for each in kept for x in each]

    def finish(
        self,
        members: list[str],
        shape: Shape | None,
        place: str,
        rotated: bool = True,
        learned: Callable[[Tensor], Tensor] | None = None,
        centering: bool = False,
    ) -> InputStatistics:
        """Averages the sums, which are used up by it, and fits the activation code.

        Args:
            members: names of the Linears that take the input.
            shape: shape of the activation code.
            place: name of the input.
            rotated: whether the statistics are wanted in the rotated basis.
            learned: from rotated tokens (tokens, n) to the reflectors of a learned rotation.
            centering: whether the code may have a center.

        Raises:
            NestQuantError: an input was not finite.
        """
        device, order, seed = self.gram.upper.device, self.gram.order, self._seed
        if len(self.dead):
            # the rotation spreads what is left over all columns, and damping decides about the rest: no special case
            logger.info(
                "%s: %d of %d input channels are zero on all calibration text", place, len(self.dead), self.features
            )
        if not self.gram.finite or (self.cross is not None and not self.cross.finite):
            raise NestQuantError(
                f"the input of {place} has NaN or infinite values",
                "calibration stopped",
                "check the model's weights, or load it in a wider dtype",
            )
        turn = rotation(order, seed)
        hessian, cross = self.gram.mean(), None if self.cross is None else self.cross.mean()
        if not rotated:
            hessian, cross = _turned(turn.inverse, hessian, cross)
        noise = torch.zeros(order, device=device)
        code = reflectors = None
        if shape is not None or learned is not None:
            sample = F.pad(torch.cat(self.kept).to(device).float(), (0, order - self.features))
            sample = over_rows(turn.apply, sample) if rotated else sample
        if learned is not None:
            reflectors = learned(sample)
            reflect = Reflections.of(reflectors).reflect
            sample = over_rows(reflect, sample)
            hessian, cross = _turned(reflect, hessian, cross)
        if shape is not None:
            code = fit_heads(sample[None], shape, seed, centering)
            noise = (sample - code.round(sample).dequantized()).square().mean(0)
        return InputStatistics(tuple(members), hessian, noise, code, len(self.dead), reflectors, cross)


def _turned(turn: Callable[[Tensor], Tensor], hessian: Tensor, cross: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both (n, n) in the basis of turn(x) for rows x."""

    def both_sides(moments: Tensor) -> Tensor:
        return over_rows(turn, over_rows(turn, moments).t()).t()

    turned = both_sides(hessian)
    return (turned + turned.t()).div_(2), None if cross is None else both_sides(cross)


@contextmanager
def watch_all(collectors: dict[str, InputCollector], linears: dict[str, nn.Linear]) -> Iterator[None]:
    """Watches the first Linear of every group."""
    with ExitStack() as stack:
        for name, collector in collectors.items():
            stack.enter_context(collector.watch(linears[name]))
        yield
