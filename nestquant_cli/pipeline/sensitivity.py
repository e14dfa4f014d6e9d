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
        noise = {name: item.input.noise for name, item in behind.items()} if recipe.act_allocation == "mixed" else {}
        return fisher(original.whole(), windows, recipe.seed, noise)

    return _sensitivities(behind, group.run_on_rank0(fishers_of_whole_model), recipe)


@dataclass(frozen=True)
class _Input:
    """What is kept of an input between the passes.

    Attributes:
        name: its full name.
        first: full name of the first Linear that takes it; of experts, which share an input, each has its own.
        entries: n, entries of a token.
        trace: tr D.
        quantizer, rotation: what rounds it, and what only rotates it.
    """

    name: str
    first: str
    entries: int
    trace: float
    quantizer: InputQuantizer
    rotation: InputQuantizer

    def noise(self, x: Tensor) -> Tensor:
        """Energy (tokens,) float32 of the rounding noise of x (…, features), once for all Linears that are given x."""
        energy: Tensor = self.quantizer.once(x, "noise", self._noise)
        return energy

    def _noise(self, x: Tensor) -> Tensor:
        return (self.quantizer.floats(x) - self.rotation.floats(x)).square().sum(1)


@dataclass(frozen=True)
class _Matrix:
    """What is kept of a matrix between the passes.

    Attributes:
        weights: number of its entries.
        power: (out,) float32, ‖w_o‖²/n of each row, in the basis of its input's code.
        input: its input.
    """

    weights: int
    power: Tensor
    input: _Input


def _measure_inputs(original: OriginalModel, recipe: Recipe, windows: Tensor) -> dict[str, _Matrix]:
    """Every matrix by its full name, with its input."""
    found, decoder, settings = {}, original.weights.decoder, fit_settings(recipe, original.depth)
    stream = measure_layers(original.weights, windows, settings)
    for index, parts in enumerate(track(stream, "measuring sensitivities", total=original.depth)):
        assert parts is not None
        modules, layer = linears(decoder.layers[index]), decoder.layer_name(index)
        with original.weights.layer(index):
            for item in (item for part in parts for item in part.inputs.values()):
                features = modules[item.members[0]].in_features
                source = _input(item, layer, features, settings.rotation_seed, recipe.damping)
                scaling = weight_scaling(item.factors)
                for member in item.members:
                    weight = modules[member].weight.detach().float().cpu()
                    in_basis = weight if scaling is None else weight * scaling[:features]
                    power = in_basis.square().sum(1) / source.entries
                    found[f"{layer}.{member}"] = _Matrix(weight.numel(), power, source)
    return found


def _input(item: InputStatistics, layer: str, features: int, seed: int | None, damping: float) -> _Input:
    """What is kept of an input of a layer from its statistics."""
    reflections = None if item.reflectors is None else Reflections.of(item.reflectors)
    signs = scaled(seed, item.factors)
    quantizers = (InputQuantizer(features, signs, code, reflections, item.parts) for code in (item.code, None))
    names = f"{layer}.{item.source or item.members[0]}", f"{layer}.{item.members[0]}"
    return _Input(*names, len(item.noise), feedback_trace(item, damping), *quantizers)


def _sensitivities(behind: dict[str, _Matrix], fishers: dict[str, Fisher], recipe: Recipe) -> Sensitivities:
    found, shape = Sensitivities({}, {}), recipe.shape("act") if recipe.act_allocation == "mixed" else None
    for name, matrix in behind.items():
        outputs, noisy = (0.5 * each.cpu() * matrix.power for each in (fishers[name].outputs, fishers[name].noisy))
        cost, source = matrix.input.trace * math.fsum(outputs.tolist()), matrix.input
        found.matrices[name] = Sensitivity(matrix.weights, cost, source.first)
        if shape is not None:
            cost = math.fsum(noisy.tolist()) / NESTED[shape.word_bits]
            before = found.inputs.get(source.name, Sensitivity(source.entries, 0.0))
            found.inputs[source.name] = Sensitivity(before.weights, before.cost + cost)
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
