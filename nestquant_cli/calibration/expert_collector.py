"""Collects an input that the experts of a layer share: a sum for each expert, one for all, and a sample of tokens.

The rotation and the activation code are those of the input, fitted to tokens that all its experts get. H is each
expert's own, as far as it saw tokens. With n_e tokens of expert e, H_e their mean of x xᵀ, and H_pool that of all
experts,

    H = (n_e·H_e + κ·H_pool) / (n_e + κ),   κ = POOL_WIDTHS·n
    J = J_pool · tr H / tr H_pool

since the code's error grows with the token. An expert without tokens gets H_pool and J_pool. Tokens of zeros, which a
router did not send, do not count.

κ was chosen on held-out tokens of a mixture made from SmolLM2-135M at W4 (`scripts/make_moe.py`, 8 copies, layer 2).
With n_e = n/2 the relative output error of gate_up, n = 576, was 42.4, 28.6, 28.1 and 28.0·10⁻⁴ for κ = 0, n/2, n and
∞; that of down, n = 1,536, whose neurons have another order in each expert, was 29.6, 25.1, 25.7 and 29.2·10⁻⁴.
"""

import math
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import NestQuantError
from ..codecs.weights import Shape
from ..parallel.team import Team
from ..parallel.tiles import run_pieces
from .all_experts import is_routed_call
from .channel_scales import Behind
from .current_window import current_window, in_window, window_generator
from .expert_blocks import tokens_together
from .gram import GramSum
from .input_fit import InputFit, fit_input, in_basis, not_finite, report_dead, still_dead
from .input_groups import Calls, ExpertInput
from .statistics import InputStatistics

POOL_WIDTHS = 0.5  # κ in widths n of the input
_POOL = -1  # the sum of all experts, among their numbers


class ExpertCollector:
    """Collects one input of the experts of a layer over the windows, in one pass or several.

    A pass sums for the experts that `open` was given. The first pass collects what all share, too. Tokens are added to
    the sums on the thread that computes them, as sums do not depend on their order.

    Args:
        shared: the input.
        features: its size.
        tokens_per_window: number of tokens of each window that are kept, of those that all experts get.
        seed: seed of the choice of tokens and of the rotation.
        device: device of the sums.
        first: number of this process's first window; which tokens of a window are kept depends on its number.
    """

    def __init__(
        self, shared: ExpertInput, features: int, tokens_per_window: int, seed: int, device: torch.device, first: int
    ) -> None:
        self.shared, self.features = shared, features
        self.pool = GramSum(features, seed, device)
        self.grams: dict[int, GramSum] = {}
        self.tokens = [0] * shared.experts
        self.dead = torch.arange(features, device=device)  # channels that were always zero
        self.fit: InputFit | None = None
        self._per_window, self._seed, self._first, self._device = tokens_per_window, seed, first, device
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}  # priority and tokens by window
        self._pooling = True
        self._counting = threading.Lock()
        self._adding = {expert: threading.Lock() for expert in (*range(shared.experts), _POOL)}

    def open(self, experts: Collection[int]) -> None:
        """Makes empty sums for the experts that the next pass is for."""
        together = tokens_together(self.shared.experts)
        self.grams = {expert: GramSum(self.features, self._seed, self._device, together) for expert in experts}

    def take(self, calls: Calls) -> None:
        """Takes what the experts were given, by the names of their Linears and the numbers of windows."""
        names = self.shared.families[0]

        def take_window(window: int) -> None:
            with in_window(window):
                for expert, name in enumerate(names):
                    for x in calls[name].get(window, ()):
                        self.see(expert, x)

        run_pieces(take_window, sorted({window for of_name in calls.values() for window in of_name}))

    @torch.inference_mode()
    def see(self, expert: int, x: Tensor) -> None:
        """Takes the tokens x (…, features) that an expert is given in this thread's window."""
        tokens, number = x.reshape(-1, self.features), self._first + current_window()
        tokens = tokens[tokens.any(-1)]
        if not len(tokens):
            return
        grid, owner = self.pool.grid(tokens), expert if expert in self.grams else _POOL
        if self._pooling:
            self._sample(number, expert, tokens)
            dead = still_dead(self.dead, tokens)
            with self._counting:
                self.tokens[expert] += len(tokens)
                self.dead = dead[torch.isin(dead, self.dead)]
        with self._adding[owner]:
            self.grams.get(owner, self.pool).add(grid)

    def _sample(self, number: int, expert: int, tokens: Tensor) -> None:
        """Keeps those of the window's tokens that drew the smallest numbers, whatever their expert."""
        generator = window_generator(self._seed + 1 + expert, number)
        drawn = torch.rand(len(tokens), dtype=torch.float64, generator=generator)
        if number in self._kept:
            before, kept = self._kept[number]
            drawn, tokens = torch.cat([before, drawn]), torch.cat([kept, tokens])
        best = drawn.argsort(stable=True)[: self._per_window]
        self._kept[number] = drawn[best], tokens[best.to(tokens.device)]

    @contextmanager
    def watch(self, linears: dict[str, nn.Linear]) -> Iterator[None]:
        """Within it every input of the experts is added."""

        def taking(expert: int, _: nn.Module, args: tuple[Any, ...]) -> None:
            if not is_routed_call():
                self.see(expert, args[0])

        with ExitStack() as stack:
            names = self.shared.families[0]
            for expert, name in enumerate(names) if self._pooling else [(e, names[e]) for e in self.grams]:
                stack.enter_context(linears[name].register_forward_pre_hook(partial(taking, expert)))
            yield

    def join(self, team: Team) -> None:
        """Adds up the sums of all processes of a team, and puts their samples together in the order of windows."""
        for gram in (self.pool, *self.grams.values()) if self._pooling else self.grams.values():
            team.sum(gram.upper.entries)
            gram.tokens = sum(team.gather(gram.tokens))
            gram.finite = all(team.gather(gram.finite))
        if not self._pooling:
            return
        self._pooling = False
        for gram in self.grams.values():
            self.pool.include(gram)
        mine = [(number, self._kept[number][1].cpu()) for number in sorted(self._kept)]
        tokens, dead, kept = zip(*team.gather((self.tokens, self.dead.tolist(), mine)), strict=True)
        self.tokens = [sum(counts) for counts in zip(*tokens, strict=True)]
        self.dead = torch.tensor(sorted(set(dead[0]).intersection(*dead[1:])), dtype=torch.int64)
        self._kept = {number: (torch.empty(0), sample) for part in kept for number, sample in part}

    def fit_shared(
        self,
        shape: Shape | None,
        place: str,
        rotated: bool = True,
        learned: Callable[[Tensor, bytes | None], Tensor] | None = None,
        centering: bool = False,
        parts: int = 1,
        behind: Behind | None = None,
    ) -> None:
        """Fits what all experts share, to the sample: see `input_fit.fit_input`.

        Raises:
            NestQuantError: an input was not finite, or there were no tokens.
        """
        report_dead(place, len(self.dead), self.features)
        if not self.pool.finite:
            raise not_finite(place)
        if not self.pool.tokens:
            raise NestQuantError(
                f"no expert was given a token at {place} that is not zero", "calibration stopped", "use other text"
            )
        sample = [tokens for _, tokens in self._kept.values()]
        order = self.pool.order
        self.fit = fit_input(sample, order, self._device, shape, self._seed, rotated, learned, centering, parts, behind)
        self._kept, self._rotated, self._parts = {}, rotated, parts
        self._power = math.fsum(self.pool.upper.diagonal().tolist()) / self.pool.tokens

    def finish(self, expert: int) -> InputStatistics:
        """Statistics of one expert, whose sum is freed; after `fit_shared`."""
        assert self.fit is not None and self._power > 0
        gram, weight = self.grams.pop(expert), POOL_WIDTHS * self.pool.order
        pooled = weight / (gram.tokens + weight)
        mean = gram.mean(self.pool, weight)
        power, fit = math.fsum(mean.diagonal().tolist()), self.fit
        hessian, _ = in_basis(mean, None, self._seed, self._rotated, fit.reflectors, self._parts, fit.factors)
        if fit.factors is None:
            noise = fit.noise * (power / self._power)
        else:
            noise = fit.noise * (math.fsum(hessian.diagonal().tolist()) / fit.energy if fit.energy > 0 else 1.0)
        return InputStatistics(
            self.shared.members(expert),
            hessian,
            noise,
            fit.code,
            len(self.dead),
            fit.reflectors,
            source=self.shared.source,
            tokens=self.tokens[expert],
            pooled=pooled,
            parts=self._parts,
            factors=fit.factors,
        )
