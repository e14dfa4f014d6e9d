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
from .layer_matrices import quantize_matrices
from .layer_part import LayerPart
from .original_model import OriginalModel
from .recipe import Recipe


class SequentialQuantizer:
    """What a sequential calibration hands its measurements to.

    Args:
        original: the model.
        recipe: what to quantize and how.
        output: where finished layers are.
        parts: results of the finished layers.
        group: the processes, all of which measure.
        words: see `quantize_matrices`.
        hidden: see `QuantizerCallbacks`.
    """

    def __init__(
        self,
        original: OriginalModel,
        recipe: Recipe,
        output: Output,
        parts: list[LayerPart | None],
        group: Team,
        words: dict[str, int] | None,
        hidden: Callable[[int], HiddenStates],
    ) -> None:
        self.original, self.recipe, self.output, self.parts = original, recipe, output, parts
        self.group, self.words = group, words
        self.callbacks = QuantizerCallbacks(self._quantize, self._quantized, hidden)
        self._packed: dict[str, QuantizedMatrix] = {}

    def take(self) -> dict[str, QuantizedMatrix]:
        """The matrices of the layer that was measured last, by name in the layer."""
        packed, self._packed = self._packed, {}
        return packed

    def _quantize(self, index: int, item: InputStatistics) -> dict[str, Tensor]:
        decoder = self.original.weights.decoder
        modules, place = linears(decoder.layers[index]), decoder.layer_name(index)
        statistics = LayerStatistics({item.members[0]: item}, None)
        found = quantize_matrices(modules, statistics, self.recipe, place, self.group, self.words)
        self._packed |= found
        return {
            name: self._weight(modules[name], matrix.tensors, matrix.code, item.reflectors)
            for name, matrix in found.items()
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
            forms = code.tensors(linear.out_features, padded_size(linear.in_features))
            stored = {leaf: tensors[f"{name}.{leaf}"] for leaf in forms}
            reflectors = tensors.get(f"{linear.input}.{REFLECTORS}")
            reflectors = None if reflectors is None else reflectors.view(torch.bfloat16)
            weights[name.removeprefix(prefix)] = self._weight(module, stored, code, reflectors)
        return weights

    def _weight(
        self, linear: nn.Linear, tensors: dict[str, Tensor], code: WeightCode, reflectors: Tensor | None
    ) -> Tensor:
        """What packed tensors stand for (out, in), in the dtype of a Linear's own weight and on its device."""
        order, seed = padded_size(linear.in_features), None if self.recipe.rotation == "none" else self.recipe.seed
        values = decoded(code, {leaf: tensor.to(linear.weight.device) for leaf, tensor in tensors.items()}, order)
        return rotation_for(order, seed, reflectors).inverse(values)[:, : linear.in_features].to(linear.weight.dtype)
