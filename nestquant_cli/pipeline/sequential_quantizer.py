"""Quantizes the inputs of a layer one by one while a sequential calibration measures them."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..calibration.hidden_states import HiddenStates
from ..calibration.sequential import QuantizerCallbacks
from ..calibration.statistics import InputStatistics, LayerStatistics
from ..checkpoint.output import Output
from ..codecs.registry import decoded
from ..codecs.weights import WeightCode
from ..models.shards import read_tensors
from ..models.structure import linears
from ..modules.inputs import padded_size
from ..modules.layout import REFLECTORS
from ..parallel.team import Team
from ..quantization.layer import QuantizedMatrix
from ..rotation.reflections import rotation_for
from ..rotation.seeds import dual, scaled
from .layer_matrices import quantize_matrices
from .layer_part import LayerPart
from .original_model import OriginalModel
from .output_gradients import OutputGradients
from .recipe import Recipe


class SequentialQuantizer:
    """Quantizes each input's matrices as soon as a sequential calibration has measured it.

    Args:
        original: the model.
        recipe: settings of the quantization.
        output: checkpoint with the shards of the finished layers.
        parts: share of each finished layer in layout and report; None for the others.
        group: the processes, all of which measure.
        words: bits of a word of each matrix by its full name; None gives all of them the recipe's bits.
        gradients: of the outputs of Linears, for feedback from row to row; None for none.
        hidden: makes an empty store of one tensor a window, given n, with one n-th of the memory for such stores.

    Attributes:
        callbacks: what the calibration calls between two measurements.
    """

    def __init__(
        self,
        original: OriginalModel,
        recipe: Recipe,
        output: Output,
        parts: list[LayerPart | None],
        group: Team,
        words: dict[str, int] | None,
        gradients: OutputGradients | None,
        hidden: Callable[[int], HiddenStates],
    ) -> None:
        self.original, self.recipe, self.output, self.parts = original, recipe, output, parts
        self.group, self.words, self.gradients = group, words, gradients
        self.callbacks = QuantizerCallbacks(self._quantize, self._quantized, hidden)
        self._packed: dict[str, QuantizedMatrix] = {}

    def take(self) -> dict[str, QuantizedMatrix]:
        """Returns the matrices of the layer that was measured last, by name in the layer, and forgets them."""
        packed, self._packed = self._packed, {}
        return packed

    def _quantize(self, index: int, item: InputStatistics) -> dict[str, Tensor]:
        decoder = self.original.weights.decoder
        modules, place = linears(decoder.layers[index]), decoder.layer_name(index)
        statistics = LayerStatistics({item.members[0]: item}, None)
        matrices = quantize_matrices(modules, statistics, self.recipe, place, self.group, self.words, self.gradients)
        self._packed |= matrices
        return {
            name: self._weight(modules[name], matrix.tensors, matrix.code, item.reflectors, item.parts, item.factors)
            for name, matrix in matrices.items()
        }

    def _quantized(self, index: int) -> dict[str, Tensor]:
        part = self.parts[index]
        assert part is not None
        decoder, layout = self.original.weights.decoder, part.layout
        modules, prefix = linears(decoder.layers[index]), decoder.layer_name(index) + "."
        path: Path = self.output.folder / self.output.shard(index)
        tensors = self.group.run_on_rank0(lambda: read_tensors(path))
        weights = {}
        for name, linear in layout.linears.items():
            code = linear.code
            assert code is not None
            module = modules[name.removeprefix(prefix)]
            forms = linear.tensors()
            stored = {leaf: tensors[f"{name}.{leaf}"] for leaf in forms}
            reflectors = tensors.get(f"{linear.input}.{REFLECTORS}")
            reflectors = None if reflectors is None else reflectors.view(torch.bfloat16)
            weights[name.removeprefix(prefix)] = self._weight(
                module,
                stored,
                code,
                reflectors,
                layout.parts.get(linear.input, 1),
                layout.factors.get(linear.input),
            )
        return weights

    def _weight(
        self,
        linear: nn.Linear,
        tensors: dict[str, Tensor],
        code: WeightCode,
        reflectors: Tensor | None,
        parts: int,
        factors: bytes | None,
    ) -> Tensor:
        """The weight (out, in) that packed tensors decode to, in the dtype and on the device of the Linear's weight."""
        order, seed = padded_size(linear.in_features), None if self.recipe.rotation == "none" else self.recipe.seed
        values = decoded(code, {leaf: tensor.to(linear.weight.device) for leaf, tensor in tensors.items()}, order)
        rotation = rotation_for(order, dual(scaled(seed, factors)), reflectors, parts)
        return rotation.inverse(values)[:, : linear.in_features].to(linear.weight.dtype)
