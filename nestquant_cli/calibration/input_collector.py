"""Collects one input of a decoder layer over the windows: its sums of outer products, and a sample of its tokens."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..codecs.weights import Shape
from ..parallel.team import Team
from ..parallel.tiles import over_rows, run_pieces
from ..rotation.transform import rotation
from .channel_scales import Behind
from .current_window import choose, current_window, window_generator
from .gram import CrossSum, GramSum, Grid, on_grid
from .input_fit import fit_input, in_basis, not_finite, report_dead, rows_in_basis, still_dead
from .statistics import InputStatistics


@dataclass(frozen=True)
class _Window:
    """What one window adds to the sums.

    Attributes:
        grid: all tokens of the window, on their int8 grid.
        sample: (tokens, features) the tokens that are kept.
        zero: numbers of the channels that are zero in all tokens, of those that were zero in the windows before.
    """

    grid: Grid
    sample: Tensor
    zero: Tensor

    def joined(self, other: "_Window") -> "_Window":
        """The tokens of both."""
        v, exponent = (torch.cat([getattr(one.grid, part) for one in (self, other)]) for part in ("v", "exponent"))
        grid = Grid(v, exponent, self.grid.finite and other.grid.finite)
        return _Window(grid, torch.cat([self.sample, other.sample]), self.zero[torch.isin(self.zero, other.zero)])


class InputCollector:
    """Sums the outer products of one input over windows and keeps a sample of its tokens.

    Every token counts once. Weighting tokens by the inverse power of the residual stream, so that attention sinks count
    as one token, had no measurable effect (W4A4KV4: perplexity 23.58 and 23.75).

    Args:
        features: size of the input.
        tokens_per_window: number of tokens of each window that are kept.
        seed: seed of the choice of tokens and of the rotation.
        device: device of the sum.
        first: number of this process's first window; which tokens of a window are kept depends on its number.
        sequential: whether E[x₀ xᵀ] is summed as well, with x₀ the input in the original model.
        residual: width of the residual stream, of which E[(r₀ − r) xᵀ] is summed as well; 0 for none.
    """

    def __init__(
        self,
        features: int,
        tokens_per_window: int,
        seed: int,
        device: torch.device,
        first: int = 0,
        sequential: bool = False,
        residual: int = 0,
    ) -> None:
        self.gram = GramSum(features, seed, device)
        self.cross = CrossSum(self.gram.order, device) if sequential else None
        self.residual = CrossSum(self.gram.order, device, residual + -residual % 8) if residual else None
        self.features, self._width = features, residual
        self.kept: list[Tensor] = []
        self.dead = torch.arange(features, device=device)  # channels that were always zero
        self._per_window = tokens_per_window
        self._seed, self._first, self._window = seed, first, first
        self._seen: dict[int, _Window] = {}
        self._original: dict[int, Tensor] = {}
        self._drift: dict[int, Tensor] = {}

    def add(self, x: Tensor) -> None:
        """Adds the input x (..., features) of the next window."""
        self.take({self._window - self._first: x})
        self.flush()

    def take(self, seen: dict[int, Tensor]) -> None:
        """Takes inputs (…, features) by number of the window in this process; `flush` adds them up."""
        run_pieces(lambda window: self._see(window, seen[window]), seen)

    @torch.inference_mode()
    def _see(self, window: int, x: Tensor) -> None:
        """Rounds one input to its grid and samples it, on the thread that computes it."""
        number, tokens, dead = self._first + window, x.reshape(-1, self.features), self.dead
        rows = choose(tokens.shape[0], self._per_window, window_generator(self._seed, number))
        dead = still_dead(dead, tokens)
        found = _Window(self.gram.grid(tokens), tokens[rows.to(tokens.device)], dead)
        before = self._seen.get(number)  # of a Linear that a layer calls several times
        self._seen[number] = found if before is None else before.joined(found)

    def set_original(self, inputs: dict[int, Tensor]) -> None:
        """Takes the original model's inputs x₀ by number of the window in this process, for the next `flush`."""
        self._original = {self._first + window: x for window, x in inputs.items()}

    def set_drift(self, drift: dict[int, Tensor]) -> None:
        """Takes r₀ − r (…, width) of the residual stream by number of the window in this process, as `set_original`."""
        self._drift = {self._first + window: x for window, x in drift.items()}

    @torch.inference_mode()
    def flush(self) -> None:
        """Adds up the inputs that were taken, in the order of the windows."""
        for number in sorted(self._seen):
            seen = self._seen[number]
            if self.cross is not None:
                original = self.gram.grid(self._original[number].reshape(-1, self.features))
                self.cross.add(original, seen.grid)
            if self.residual is not None:
                drift = self._drift[number].reshape(-1, self._width)
                self.residual.add(on_grid(drift, self.residual.rows, self._seed), seen.grid)
            self.gram.add(seen.grid)
            self.dead = seen.zero[torch.isin(seen.zero, self.dead)]
            self.kept.append(seen.sample)
        self._window += len(self._seen)
        self._seen, self._original, self._drift = {}, {}, {}

    @contextmanager
    def watch(self, linear: nn.Linear) -> Iterator[None]:
        """Within it every input of `linear` is taken for the next `flush`."""

        def see(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._see(current_window(), args[0])

        handle = linear.register_forward_pre_hook(see)
        try:
            yield
        finally:
            handle.remove()

    def join(self, team: Team) -> None:
        """Adds up the sums of all processes of a team, and puts their samples together in the order of windows."""
        team.sum(self.gram.upper.entries)
        for cross in self._crosses():
            team.sum(cross.total)
            pairs, sound = zip(*team.gather((cross.pairs, cross.finite)), strict=True)
            cross.pairs, cross.finite = sum(pairs), all(sound)  # so that all processes refuse what one does
        everyone = team.gather((self.gram.tokens, self.gram.finite, self.dead.tolist(), [x.cpu() for x in self.kept]))
        tokens, finite, dead, kept = zip(*everyone, strict=True)
        self.gram.tokens, self.gram.finite = sum(tokens), all(finite)
        self.dead = torch.tensor(sorted(set(dead[0]).intersection(*dead[1:])), dtype=torch.int64)
        self.kept = [sample for samples in kept for sample in samples]

    def _crosses(self) -> list[CrossSum]:
        return [cross for cross in (self.cross, self.residual) if cross is not None]

    def finish(
        self,
        members: list[str],
        shape: Shape | None,
        place: str,
        rotated: bool = True,
        learned: Callable[[Tensor, bytes | None], Tensor] | None = None,
        centering: bool = False,
        parts: int = 1,
        behind: Behind | None = None,
        correction: float = 1.0,
        residual_correction: float = 1.0,
    ) -> InputStatistics:
        """Averages the sums, which are freed, and fits the activation code to the sample.

        Args:
            members: names of the Linears that take the input.
            shape: shape of the activation code.
            place: name of the input.
            rotated: whether the statistics are wanted in the rotated basis.
            learned, behind: as `input_fit.fit_input` takes them.
            centering: whether the code may have a center.
            parts: number of parts that are rotated and rounded each by itself.
            correction: ε in (1 − ε)·E[x xᵀ] + ε·E[x₀ xᵀ], from 0 to 1.
            residual_correction: ρ in ρ·E[(r₀ − r) xᵀ].

        Raises:
            NestQuantError: an input was not finite.
        """
        device, order, seed = self.gram.upper.entries.device, self.gram.order, self._seed
        report_dead(place, len(self.dead), self.features)
        if not self.gram.finite or not all(cross.finite for cross in self._crosses()):
            raise not_finite(place)
        hessian, cross = self.gram.mean(), None if self.cross is None else self.cross.mean()
        if cross is not None and correction < 1:
            cross = hessian.lerp(cross, correction)
        fit = fit_input(self.kept, order, device, shape, seed, rotated, learned, centering, parts, behind)
        basis = seed, rotated, fit.reflectors, parts, fit.factors
        hessian, cross = in_basis(hessian, cross, *basis)
        residual = None if self.residual is None else rows_in_basis(self._residual(residual_correction), *basis)
        fitted = fit.noise, fit.code, len(self.dead), fit.reflectors
        return InputStatistics(
            tuple(members), hessian, *fitted, cross, parts=parts, factors=fit.factors, residual=residual
        )

    def _residual(self, correction: float) -> Tensor:
        """ρ·E[(r₀ − r) xᵀ] (width, n) float32, x behind the Hadamard rotation."""
        assert self.residual is not None
        turned = rotation(self.residual.rows, self._seed)
        columns = over_rows(turned.inverse, self.residual.mean().mul_(correction).t().contiguous())
        return columns.t()[: self._width].contiguous()


@contextmanager
def watch_all(collectors: dict[str, InputCollector], linears: dict[str, nn.Linear]) -> Iterator[None]:
    """Within it each collector takes the inputs of the Linear that it is named after."""
    with ExitStack() as stack:
        for name, collector in collectors.items():
            stack.enter_context(collector.watch(linears[name]))
        yield
