"""What one decoder layer's inputs look like: Hessians, activation noise, and the codes fitted to them.

For an input x (rotated) with rounding noise z:

    H = E[x xᵀ] per token,   J = diag(E[z z]) per token

J is kept as its diagonal: after the rotation the noise of a lattice is as good as white.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codecs.heads import CacheCodes
from ..codecs.protocol import Shape, VectorCode
from ..codecs.registry import fit_vectors
from ..errors import NestQuantError
from ..rotation.reflections import Reflections
from ..rotation.transform import rotation
from ..team import Team
from ..tiles import over_rows, run_pieces, slices
from .observer import choose, current_window, window_generator

logger = logging.getLogger("nestquant")

STRIP = 256  # columns of the Gram matrix that are summed in one product
NOISE_TOKENS = 4096  # tokens of a layer that are kept for fitting and for measuring the noise


@dataclass(frozen=True)
class InputStatistics:
    """One distinct input of a layer, in the rotated basis.

    Attributes:
        members: names of the Linears that take it, in the layer.
        hessian: (n, n) float32, E[x xᵀ] per token; n is padded to a multiple of 8.
        noise: (n,) float32, E[z²] per token; zero where activations stay in 16 bits.
        code: of the activations, or None.
        dead: channels of the input, before the rotation, that were zero on all calibration text.
        reflectors: (r, n) of a learned rotation, which the basis is behind; None without one.
    """

    members: tuple[str, ...]
    hessian: Tensor
    noise: Tensor
    code: VectorCode | None
    dead: int = 0
    reflectors: Tensor | None = None


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of one decoder layer.

    Attributes:
        inputs: by the name of the first Linear that takes the input, in the layer.
        cache: codes of keys and values, or None.
    """

    inputs: dict[str, InputStatistics]
    cache: CacheCodes | None


class InputCollector:
    """Sums the Gram matrix of one input over windows and keeps a sample of its tokens.

    Args:
        features: size of the input.
        tokens_per_window: how many tokens of each window are kept.
        seed: of the choice.
        device: of the sum.
        first: number of the window that comes first; the choice in a window depends on its number.
    """

    def __init__(self, features: int, tokens_per_window: int, seed: int, device: torch.device, first: int = 0) -> None:
        self.gram = torch.zeros(features, features, dtype=torch.float32, device=device)
        self.tokens = 0
        self.kept: list[Tensor] = []
        self._per_window = tokens_per_window
        self.features = features
        self._seed, self._first, self._window = seed, first, first
        self._seen: dict[int, Tensor] = {}  # by window

    def add(self, x: Tensor) -> None:
        """x (..., features): the next window's input."""
        self._seen[self._window] = x
        self.flush()

    def flush(self) -> None:
        """Adds up what was seen, in the order of the windows."""
        numbers = sorted(self._seen)
        seen = [self._seen[number].reshape(-1, self.features) for number in numbers]
        wide = [x.float() for x in seen]

        @torch.inference_mode()
        def strip(part: slice) -> None:  # strips down to the diagonal cost little more than half
            for x in wide:
                self.gram[part, part.start :].addmm_(x[:, part].t(), x[:, part.start :])

        run_pieces(strip, slices(self.features, self.gram.device, STRIP))
        for number, flat in zip(numbers, seen, strict=True):
            rows = choose(flat.shape[0], self._per_window, window_generator(self._seed, number))
            self.kept.append(flat[rows.to(flat.device)])
            self.tokens += flat.shape[0]
        self._window += len(numbers)
        self._seen = {}

    @contextmanager
    def watch(self, linear: nn.Linear) -> Iterator[None]:
        """Keeps every input of `linear` during the block for the next `flush`."""

        def see(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._seen[self._first + current_window()] = args[0]

        handle = linear.register_forward_pre_hook(see)
        try:
            yield
        finally:
            handle.remove()

    def join(self, team: Team) -> None:
        """Adds up what the processes of a team have seen: sums over all windows, samples in the order of windows."""
        team.sum(self.gram)
        self.tokens = sum(team.gather(self.tokens))
        self.kept = [kept for each in team.gather([kept.cpu() for kept in self.kept]) for kept in each]

    def finish(
        self,
        members: list[str],
        shape: Shape | None,
        rotation_seed: int | None,
        place: str,
        learned: Callable[[Tensor], Tensor] | None = None,
    ) -> InputStatistics:
        """Rotates the sums, which are used up by it, and fits the activation code.

        Args:
            members: names of the Linears that take the input.
            shape: of the activation code.
            rotation_seed: None does not rotate.
            place: name of the input.
            learned: from rotated tokens (tokens, n) to the reflectors of a learned rotation.

        Raises:
            NestQuantError: an input was not finite.
        """
        features = self.features
        padding = -features % 8
        turn = rotation(features + padding, rotation_seed)
        dead = int((self.gram.diagonal() == 0).sum())
        if dead:
            # the rotation spreads what is left over all columns, and damping decides about the rest: no special case
            logger.info("%s: %d of %d input channels are zero on all calibration text", place, dead, features)
        gram = self.gram.triu_().div_(self.tokens)
        gram += gram.triu(1).t()
        hessian = over_rows(turn.apply, F.pad(gram, (0, padding, 0, padding)) if padding else gram)
        del gram, self.gram  # as large as anything that a run holds
        hessian = over_rows(turn.apply, hessian.t())
        hessian = (hessian + hessian.t()).div_(2)
        if not torch.isfinite(hessian).all():
            raise NestQuantError(
                f"the input of {place} has NaN or infinite values",
                "calibration stopped",
                "check the model's weights, or load it in a wider dtype",
            )
        noise = torch.zeros(features + padding, device=hessian.device)
        code = reflectors = None
        if shape is not None or learned is not None:
            sample = over_rows(turn.apply, F.pad(torch.cat(self.kept).to(hessian.device).float(), (0, padding)))
        if learned is not None:
            reflectors = learned(sample)
            reflect = Reflections.of(reflectors).reflect
            sample = over_rows(reflect, sample)
            hessian = over_rows(reflect, over_rows(reflect, hessian).t())
            hessian = (hessian + hessian.t()).div_(2)
        if shape is not None:
            code = fit_vectors(sample, shape, self._seed)
            noise = (sample - code.round(sample).dequantized()).square().mean(0)
        return InputStatistics(tuple(members), hessian, noise, code, dead, reflectors)


def fit_cache(sample: tuple[Tensor, Tensor], shape: Shape, seed: int, rotation_seed: int | None) -> CacheCodes:
    """Codes of keys and values from samples (vectors, head size) of both."""
    codes = []
    for vectors in sample:
        rotated = rotation(vectors.shape[-1], rotation_seed).apply(vectors)
        codes.append(fit_vectors(rotated, shape, seed))
    return CacheCodes(*codes)


@contextmanager
def watch_all(collectors: dict[str, InputCollector], linears: dict[str, nn.Linear]) -> Iterator[None]:
    """Watches the first Linear of every group."""
    with ExitStack() as stack:
        for name, collector in collectors.items():
            stack.enter_context(collector.watch(linears[name]))
        yield
