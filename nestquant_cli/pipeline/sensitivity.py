"""How much rounding each matrix costs, measured: what its output's errors do to the loss, times how large they are.

An error δy of a Linear's output y adds about ½ δyᵀ F δy to the KL divergence from the unrounded model, F = E[g gᵀ] with
g the gradient of log p of a token drawn from the model itself (Fisher information). Of F the diagonal is kept. LDLQ
leaves

    E|δy_o|² = e·(‖w_o‖²/n)·tr D,   H + J = L D Lᵀ

in row o of a matrix with n inputs, where e is the code's mean squared error on a unit Gaussian; so c_m, the factor of e
in the loss, is ½ Σ_o F_oo (‖w_o‖²/n) tr D.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..base.progress import track
from ..calibration.measure_layers import measure_layers
from ..calibration.statistics import InputStatistics
from ..checkpoint.load import load_model
from ..e8.code import BLOCK
from ..models.structure import find_decoder, linears
from ..parallel.team import Team
from ..parallel.tiles import diagonal_blocks
from ..quantization.allocation import Sensitivity
from ..quantization.factors import damped_factor
from .original_model import OriginalModel, fit_settings
from .recipe import Recipe

Fisher = dict[str, Tensor]  # E[g²] a token of every output (out,), by full name of the Linear


def measure(original: OriginalModel, recipe: Recipe, windows: Tensor, group: Team) -> dict[str, Sensitivity]:
    """Sensitivities of all matrices by full name.

    The model is run forward and backward, so it has to fit into memory whole.

    Args:
        original: the model.
        recipe: of the quantization.
        windows: (windows, tokens) int64.
        group: of processes, all of which call this.
    """
    fishers = group.run_on_rank0(lambda: fisher(_whole(original), windows, recipe.seed))
    found = {}
    decoder = original.weights.decoder
    stream = measure_layers(original.weights, windows, fit_settings(recipe))
    for index, statistics in enumerate(track(stream, "measuring sensitivities", total=original.depth)):
        assert statistics is not None
        modules = linears(decoder.layers[index])
        with original.weights.layer(index):
            for item in statistics.inputs.values():
                trace = feedback_trace(item, recipe.damping)
                for member in item.members:
                    name, weight = f"{decoder.layer_name(index)}.{member}", modules[member].weight.detach().float()
                    power = weight.square().sum(1).cpu() / len(item.hessian)
                    cost = math.fsum((0.5 * trace * fishers[name] * power).tolist())
                    found[name] = Sensitivity(weight.numel(), cost)
    return found


def fisher(model: PreTrainedModel, windows: Tensor, seed: int) -> Fisher:
    """E[g²] a token of every Linear's output in the decoder layers, on tokens drawn from the model."""
    model.requires_grad_(False)
    decoder = find_decoder(model)
    modules = {
        f"{decoder.layer_name(index)}.{name}": linear
        for index, layer in enumerate(decoder.layers)
        for name, linear in linears(layer).items()
    }
    sums = {name: torch.zeros(linear.out_features) for name, linear in modules.items()}
    generator = torch.Generator().manual_seed(seed)
    with _watched(model, modules, sums):
        for ids in track(windows, "measuring gradients", total=len(windows)):
            logits = model(input_ids=ids[None].to(model.device), use_cache=False).logits[0].float()
            drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
            torch.nn.functional.cross_entropy(logits, drawn.to(logits.device), reduction="sum").backward()
    return {name: each / windows.numel() for name, each in sums.items()}


@contextmanager
def _watched(model: PreTrainedModel, modules: dict[str, nn.Linear], sums: Fisher) -> Iterator[None]:
    """Adds up the squares of the gradients of the modules' outputs."""

    def embedded(_: nn.Module, __: Any, output: Tensor) -> None:
        output.requires_grad_(True)

    def watch(name: str) -> Any:
        def add(gradient: Tensor) -> None:
            sums[name] += gradient.reshape(-1, gradient.shape[-1]).float().square().sum(0).cpu()

        def see(_: nn.Module, __: Any, output: Tensor) -> None:
            output.register_hook(add)

        return see

    handles = [model.get_input_embeddings().register_forward_hook(embedded)]
    handles += [linear.register_forward_hook(watch(name)) for name, linear in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def feedback_trace(item: InputStatistics, damping: float) -> float:
    """tr D of H + J = L D Lᵀ in 8 × 8 blocks, what LDLQ leaves of tr (H + J); damped as LDLQ damps it.

    Raises:
        NestQuantError: no step of the ladder makes H + J positive definite.
    """
    C, _, _ = damped_factor(item.hessian, item.noise, damping, item.members[0])
    return float(diagonal_blocks(C, BLOCK).square().sum())


def _whole(original: OriginalModel) -> PreTrainedModel:
    if not original.weights.lazy:
        return original.weights.model
    return load_model(original.source, original.dtype, str(original.weights.device))
