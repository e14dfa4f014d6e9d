"""Gradients at the outputs of Linears, on tokens drawn from the model, and the metrics of outputs made of them.

An error δy of a Linear's output y costs about ½ δyᵀ G δy of KL divergence, G = E[g gᵀ] over tokens, g as in `fisher`.
Each token counts as one here, however large its g is: G is the second moment of g/|g|. One token in a window, mostly
the first, has keys and values that all later tokens look at, and up to 900 times the mean |g|²: with |g|² as weights G
is about that token, and rounding then costs more on other text than without feedback across rows.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.device import on_host
from ..base.errors import NestQuantError
from ..base.finite import all_finite
from ..base.progress import track
from ..calibration.current_window import current_window, in_window, window_generator
from ..calibration.spill_file import Kept, KeptTensors
from ..models.expert_families import expert_families
from ..parallel.team import Team
from ..parallel.tiles import product, run_pieces
from .calibration_windows import NOTHING, other_windows
from .fisher import run_backward, watched
from .original_model import OriginalModel
from .recipe import Recipe

# Tokens that gradients are measured on, and tokens in a window, at most.
TOKENS, SEQLEN = 8192, 1024
TWO_SIDED = "two-sided"
STACKED = 8192  # rows of matrices with one input whose metric is made for all together; it takes their square


def windows_of(recipe: Recipe) -> tuple[int, int]:
    """Number of windows that gradients are measured on, and tokens in each."""
    seqlen = min(SEQLEN, recipe.seqlen)
    return min(TOKENS // seqlen, recipe.samples), seqlen


class OutputGradients:
    """Gradients at the outputs of all Linears of the decoder layers.

    Args:
        budget: bytes that may stay in memory.
        folder: folder of the file with the rest.
    """

    def __init__(self, budget: int, folder: Path | None) -> None:
        self._store = KeptTensors(budget, folder)
        self._kept: dict[str, dict[int, Kept]] = {}

    def take(self, name: str, gradient: Tensor) -> None:
        """Keeps the gradient (…, out) at the output of a Linear for the window that this thread works on."""
        tokens = gradient.reshape(-1, gradient.shape[-1]).to(torch.bfloat16, copy=True)
        self._kept.setdefault(name, {})[current_window()] = self._store.keep(tokens)

    def metrics(self, rows: Mapping[str, int]) -> Iterator[Tensor]:
        """Yields G (m, m) float32 of the outputs of Linears that share an input: of all of them together, or of each.

        A Linear without gradients gets zeros, and its rows are rounded by themselves.

        Args:
            rows: number of outputs of each Linear by its full name.

        Raises:
            NestQuantError: gradients are not finite.
        """
        together = sum(rows.values()) <= STACKED
        for names in [list(rows)] if together else [[name] for name in rows]:
            yield self._metric({name: rows[name] for name in names})

    def _metric(self, rows: Mapping[str, int]) -> Tensor:
        numbers = sorted({number for name in rows for number in self._kept.get(name, ())})
        windows = []
        for number in numbers:
            of = {name: self._kept[name][number].get().float() for name in rows if number in self._kept.get(name, ())}
            tokens = {len(g) for g in of.values()}
            assert len(tokens) == 1, "Linears that share an input see the same tokens"
            windows.append(torch.cat([of.get(name, torch.zeros(*tokens, size)) for name, size in rows.items()], dim=1))
        if not windows:
            return torch.zeros(sum(rows.values()), sum(rows.values()))
        g = torch.cat(windows)
        if not all_finite(g):
            raise NestQuantError(
                f"the gradients at the outputs of {next(iter(rows))} have NaN or infinite values",
                NOTHING,
                "load the model in a wider dtype, such as --dtype float32, or leave output_metric out",
            )
        g /= g.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return product(g.t(), g)


def refuse_metric(original: OriginalModel, recipe: Recipe, group: Team) -> None:
    """Raises NestQuantError where a recipe wants a metric of outputs that cannot be measured."""
    if recipe.output_metric != TWO_SIDED:
        return
    if group.size > 1:
        cause = f"output_metric two-sided is measured by one process, not by {group.size}"
        raise NestQuantError(cause, NOTHING, "start one process, or leave output_metric out")
    if any(expert_families(layer) for layer in original.weights.decoder.layers):
        cause = "output_metric two-sided has no gradients for experts, which see a few tokens each"
        raise NestQuantError(cause, NOTHING, "leave output_metric out")


def output_gradients(
    original: OriginalModel, recipe: Recipe, text: dict[str, Any], folder: Path, budget: int
) -> OutputGradients | None:
    """Runs the model forward and backward; None where the recipe has no use for it.

    The model has to fit into memory whole, and with it what a backward pass keeps of one window for each thread.

    Args:
        original: the model.
        recipe: settings of the quantization.
        text: records of the calibration text, as `calibration_windows.text_of` returns them.
        folder: folder for the gradients that memory has no room for.
        budget: bytes of gradients that may stay in memory.
    """
    if recipe.output_metric != TWO_SIDED:
        return None
    windows = other_windows(original, recipe, text, *windows_of(recipe)).ids
    gradients, model = OutputGradients(budget, folder), original.whole()

    def run(number: int) -> None:
        with in_window(number):
            run_backward(model, windows[number], window_generator(recipe.seed, number))

    def taking(name: str, _: Tensor, __: int) -> Callable[[Tensor], None]:
        return partial(gradients.take, name)

    with watched(model, taking):
        if on_host(original.weights.device):
            run_pieces(run, track(range(len(windows)), "measuring gradients", total=len(windows)))
        else:
            for number in track(range(len(windows)), "measuring gradients", total=len(windows)):
                run(number)
    return gradients
