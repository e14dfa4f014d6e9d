"""Measures the sensitivity of each matrix: the KL divergence that rounding it costs, for a unit error of the code.

An error δy of a Linear's output y adds about ½ δyᵀ F δy to the KL divergence from the unrounded model, F = E[g gᵀ] with
g the gradient of log p of a token drawn from the model itself (Fisher information). Of F the diagonal is kept. LDLQ
leaves

    E|δy_o|² = e·(‖w_o‖²/n)·tr D,   H + J = L D Lᵀ

in row o of a matrix with n inputs, where e is the code's mean squared error on a unit Gaussian; so c_m, the factor of e
in the loss, is ½ Σ_o F_oo (‖w_o‖²/n) tr D.

The noise z of a rounded input is white, so row o gets E(w_o·z)² = ‖w_o‖²/n·E|z|². A token's noise counts by what
depends on the token: c of an input is ½ Σ_o E[g_o² |z|²]·‖w_o‖²/n / e, summed over its matrices, with z and e those of
the recipe's bits.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base.progress import track
from ..calibration.measure_layers import measure_layers
from ..calibration.statistics import InputStatistics
from ..checkpoint.load import load_model
from ..e8.code import BLOCK
from ..models.structure import linears
from ..modules.inputs import InputQuantizer
from ..parallel.team import Team
from ..parallel.tiles import diagonal_blocks
from ..quantization.allocation import NESTED, Sensitivity
from ..quantization.factors import damped_factor
from ..rotation.reflections import Reflections
from ..rotation.seeds import ScaledSeed, scaled
from .fisher import Fisher, fisher
from .original_model import OriginalModel
from .recipe import Recipe
from .statistics_source import fit_settings


@dataclass(frozen=True)
class Sensitivities:
    """What rounding costs.

    Attributes:
        matrices: sensitivity of each matrix by its full name.
        inputs: sensitivity of each input by the full name of the first Linear that takes it; empty where the recipe
            gives all of them the same bits.
    """

    matrices: dict[str, Sensitivity]
    inputs: dict[str, Sensitivity]


def measure_sensitivities(original: OriginalModel, recipe: Recipe, windows: Tensor, group: Team) -> Sensitivities:
    """Sensitivities of all matrices and inputs.

    The model is run forward and backward, so it has to fit into memory whole.

    Args:
        original: the model.
        recipe: settings of the quantization.
        windows: (windows, tokens) int64.
        group: the processes, all of which call this; rank 0 runs the whole model.
    """

    behind = _measure_inputs(original, recipe, windows)

    def fishers_of_whole_model() -> dict[str, Fisher]:
        weights = original.weights
        device = str(weights.device)
        model = load_model(original.source, original.dtype, device) if weights.lazy else weights.model
        noise = {name: item.noise for name, item in behind.items()} if recipe.act_allocation == "mixed" else {}
        return fisher(model, windows, recipe.seed, noise)

    return _sensitivities(behind, group.run_on_rank0(fishers_of_whole_model), recipe)


@dataclass(frozen=True)
class _Matrix:
    """What is kept of a matrix between the passes.

    Attributes:
        weights: number of its entries.
        entries: n, entries of a token of its input.
        power: (out,) float32, ‖w_o‖²/n of each row, in the basis of its input's code.
        trace: tr D of its input.
        first: full name of the first Linear with its input.
        input: full name of the input.
        quantizer, rotation: what rounds the input, and what only rotates it.
    """

    weights: int
    entries: int
    power: Tensor
    trace: float
    first: str
    input: str
    quantizer: InputQuantizer
    rotation: InputQuantizer

    def noise(self, x: Tensor) -> Tensor:
        """Energy (tokens,) float32 of the rounding noise of inputs x (…, features)."""
        return (self.quantizer.floats(x) - self.rotation.floats(x)).square().sum(1)


def _measure_inputs(original: OriginalModel, recipe: Recipe, windows: Tensor) -> dict[str, _Matrix]:
    """Every matrix by its full name, with the code of its input."""
    found, decoder, settings = {}, original.weights.decoder, fit_settings(recipe, original.depth)
    stream = measure_layers(original.weights, windows, settings)
    for index, parts in enumerate(track(stream, "measuring sensitivities", total=original.depth)):
        assert parts is not None
        modules, layer = linears(decoder.layers[index]), decoder.layer_name(index)
        with original.weights.layer(index):
            for item in (item for part in parts for item in part.inputs.values()):
                names = f"{layer}.{item.members[0]}", f"{layer}.{item.source or item.members[0]}"
                trace, scaling = feedback_trace(item, recipe.damping), weight_scaling(item.factors)
                seed, basis = scaled(settings.rotation_seed, item.factors), (reflections_of(item), item.parts)
                for member in item.members:
                    weight = modules[member].weight.detach().float().cpu()
                    scaled_weight = weight if scaling is None else weight * scaling[: weight.shape[1]]
                    power = scaled_weight.square().sum(1) / len(item.noise)
                    quantizers = (InputQuantizer(weight.shape[1], seed, code, *basis) for code in (item.code, None))
                    sizes = weight.numel(), len(item.noise)
                    found[f"{layer}.{member}"] = _Matrix(*sizes, power, trace, *names, *quantizers)
    return found


def reflections_of(item: InputStatistics) -> Reflections | None:
    """The learned rotation of an input, or None."""
    return None if item.reflectors is None else Reflections.of(item.reflectors)


def _sensitivities(behind: dict[str, _Matrix], fishers: dict[str, Fisher], recipe: Recipe) -> Sensitivities:
    found, shape = Sensitivities({}, {}), recipe.shape("act") if recipe.act_allocation == "mixed" else None
    for name, matrix in behind.items():
        outputs, noisy = (0.5 * each.cpu() * matrix.power for each in (fishers[name].outputs, fishers[name].noisy))
        cost = matrix.trace * math.fsum(outputs.tolist())
        found.matrices[name] = Sensitivity(matrix.weights, cost, matrix.first)
        if shape is not None:
            cost = math.fsum(noisy.tolist()) / NESTED[shape.word_bits]
            before = found.inputs.get(matrix.input, Sensitivity(matrix.entries, 0.0))
            found.inputs[matrix.input] = Sensitivity(before.weights, before.cost + cost)
    return found


def weight_scaling(factors: bytes | None) -> Tensor | None:
    """What the columns of weights are multiplied by, (n,) float32, where the channels of their input have factors."""
    return None if factors is None else torch.from_numpy(1 / ScaledSeed(0, factors).values()).float()


def feedback_trace(item: InputStatistics, damping: float) -> float:
    """tr D of H + J = L D Lᵀ in 8 × 8 blocks, damped as LDLQ damps it: the share of tr (H + J) that LDLQ leaves.

    Raises:
        NestQuantError: no step of the ladder makes H + J positive definite.
    """
    C, _, _ = damped_factor(item.hessian, item.noise, damping, item.members[0])
    return float(diagonal_blocks(C, BLOCK).square().sum())
