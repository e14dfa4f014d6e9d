"""Gradients at the outputs of Linears, on tokens drawn from the model, and the metrics of outputs made of them.

An error δy of a Linear's output y costs about ½ δyᵀ G δy of KL divergence, G = E[g gᵀ] over tokens, g as in `fisher`.
Each token counts as one here, however large its g is: G is the second moment of g/|g|. One token in a window, mostly
the first, has keys and values that all later tokens look at, and up to 900 times the mean |g|²: with |g|² as weights G
is about that token, and rounding then costs more on other text than without feedback across rows.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.device import on_host
from ..base.errors import NestQuantError
from ..base.progress import track
from ..calibration.current_window import current_window, in_window, window_generator
from ..calibration.spill_file import Kept, KeptTensors
from ..checkpoint.load import load_model
from ..models.expert_families import expert_families
from ..parallel.team import Team
from ..parallel.tiles import product, run_pieces
from .calibration_windows import NOTHING, read_windows
from .fisher import run_backward, watched
from .original_model import OriginalModel
from .recipe import Recipe

# Windows and tokens in each that gradients are measured on, at most: 8,192 tokens.
SAMPLES, SEQLEN = 8, 1024
TWO_SIDED = "two-sided"


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

    def metric(self, names: list[str]) -> Tensor | None:
        """G (m, m) float32 of the outputs of Linears that share an input, stacked; None where one had no gradients.

        Args:
            names: full names of the Linears.
        """
        if not all(name in self._kept for name in names):
            return None
        total: Tensor | None = None
        for window in sorted(self._kept[names[0]]):
            g = torch.cat([self._kept[name][window].get().float() for name in names], dim=1)
            g /= g.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            here = product(g.t(), g)
            total = here if total is None else total.add_(here)
        return total


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
    samples, seqlen = min(SAMPLES, recipe.samples), min(SEQLEN, recipe.seqlen)
    read = {name: text[name] for name in ("dataset", "text_field", "bos")}
    windows = read_windows(original, dataclasses.replace(recipe, samples=samples, seqlen=seqlen, **read)).ids
    weights, gradients = original.weights, OutputGradients(budget, folder)
    device = str(weights.device)
    model = load_model(original.source, original.dtype, device) if weights.lazy else weights.model

    def run(number: int) -> None:
        with in_window(number):
            run_backward(model, windows[number], window_generator(recipe.seed, number))

    with watched(model, gradients.take):
        if on_host(weights.device):
            run_pieces(run, track(range(len(windows)), "measuring gradients", total=len(windows)))
        else:
            for number in track(range(len(windows)), "measuring gradients", total=len(windows)):
                run(number)
    return gradients
