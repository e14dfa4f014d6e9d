"""Measures the sensitivity of each matrix: the KL divergence that rounding it costs, for a unit error of the code.

An error δy of a Linear's output y adds about ½ δyᵀ F δy to the KL divergence from the unrounded model, F = E[g gᵀ] with
g the gradient of log p of a token drawn from the model itself (Fisher information). Of F the diagonal is kept. LDLQ
leaves

    E|δy_o|² = e·(‖w_o‖²/n)·tr D,   H + J = L D Lᵀ

in row o of a matrix with n inputs, where e is the code's mean squared error on a unit Gaussian; so c_m, the factor of e
in the loss, is ½ Σ_o F_oo (‖w_o‖²/n) tr D.
"""

import math

from torch import Tensor

from ..base.progress import track
from ..calibration.measure_layers import measure_layers
from ..calibration.statistics import InputStatistics
from ..checkpoint.load import load_model
from ..e8.code import BLOCK
from ..models.structure import linears
from ..parallel.team import Team
from ..parallel.tiles import diagonal_blocks
from ..quantization.allocation import Sensitivity
from ..quantization.factors import damped_factor
from .fisher import Fisher, fisher
from .original_model import OriginalModel
from .recipe import Recipe
from .statistics_source import fit_settings


def measure_sensitivities(
    original: OriginalModel, recipe: Recipe, windows: Tensor, group: Team
) -> dict[str, Sensitivity]:
    """Sensitivities of all matrices by full name.

    The model is run forward and backward, so it has to fit into memory whole.

    Args:
        original: the model.
        recipe: settings of the quantization.
        windows: (windows, tokens) int64.
        group: the processes, all of which call this; rank 0 runs the whole model.
    """

    def fishers_of_whole_model() -> Fisher:
        weights = original.weights
        device = str(weights.device)
        model = load_model(original.source, original.dtype, device) if weights.lazy else weights.model
        return fisher(model, windows, recipe.seed)

    fishers = group.run_on_rank0(fishers_of_whole_model)
    sensitivities = {}
    decoder = original.weights.decoder
    stream = measure_layers(original.weights, windows, fit_settings(recipe, original.depth))
    for index, parts in enumerate(track(stream, "measuring sensitivities", total=original.depth)):
        assert parts is not None
        modules = linears(decoder.layers[index])
        with original.weights.layer(index):
            for item in (item for part in parts for item in part.inputs.values()):
                trace = feedback_trace(item, recipe.damping)
                for member in item.members:
                    name, first = (f"{decoder.layer_name(index)}.{each}" for each in (member, item.members[0]))
                    weight = modules[member].weight.detach().float()
                    power = weight.square().sum(1).cpu() / len(item.hessian)
                    cost = math.fsum((0.5 * trace * fishers[name] * power).tolist())
                    sensitivities[name] = Sensitivity(weight.numel(), cost, first)
    return sensitivities


def feedback_trace(item: InputStatistics, damping: float) -> float:
    """tr D of H + J = L D Lᵀ in 8 × 8 blocks, damped as LDLQ damps it: the share of tr (H + J) that LDLQ leaves.

    Raises:
        NestQuantError: no step of the ladder makes H + J positive definite.
    """
    C, _, _ = damped_factor(item.hessian, item.noise, damping, item.members[0])
    return float(diagonal_blocks(C, BLOCK).square().sum())
