"""The methods of vLLM's Linears: one for coded matrices, one for those that the checkpoint has in 16 bits."""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed.parallel_state import get_pp_group
from vllm.distributed.utils import get_pp_indices
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)

from ...base.errors import NestQuantError
from . import operators
from .layer import LayerInput, coded_layer
from .names import split
from .pieces import Piece
from .reflectors import add_reflectors, take_reflectors
from .refusals import refuse_lost_biases
from .state import ModelState, number_in
from .weights import add_parameters, take_tensors


@register_weight_loader_v2_supported_method
class PlainLinearMethod(UnquantizedLinearMethod):
    """vLLM's own, which first sees to it that each coded matrix is in some layer."""

    def __init__(self, state: ModelState) -> None:
        super().__init__()
        self._state = state

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        refuse_untaken(self._state)
        super().process_weights_after_loading(layer)


@register_weight_loader_v2_supported_method
class CodedLinearMethod(LinearMethodBase):
    """Rotates and rounds the input once for all the matrices of a layer, and multiplies as `modules.multiply` chooses.

    Args:
        state: what the layers of the model share.
        names: names in the layout of the layer's matrices, in the order of its outputs.
    """

    def __init__(self, state: ModelState, names: list[str]) -> None:
        self._state, self._names = state, names

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Gives the layer parameters with the checkpoint's tensors, and the rows of this process."""
        linears = {name: self._state.layout.linears[name] for name in self._names}
        features = {name: linear.out_features for name, linear in linears.items()}
        processes = output_size // sum(output_partition_sizes)  # 1 for a layer that each process has whole
        places = split(self._names, features, output_partition_sizes, processes)
        pieces = [Piece(place, linears[place.name]) for place in places]
        for piece in pieces:
            if piece.linear.in_features != input_size_per_partition:
                raise NestQuantError(
                    f"{piece.place.name} has {piece.linear.in_features} columns, vLLM has {input_size_per_partition}",
                    "the checkpoint was not loaded",
                    "use it in transformers",
                )
        layer.coded_pieces, layer.coded_dtype = pieces, params_dtype
        add_parameters(layer, pieces, params_dtype, extra_weight_attrs["weight_loader"])
        add_reflectors(layer, pieces, self._state)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Makes of what was loaded what is multiplied."""
        refuse_untaken(self._state)
        if not hasattr(layer, "coded_pieces"):
            return  # done before
        self._state.place = self._names[0]
        pieces: list[Piece] = layer.coded_pieces
        refuse_lost_biases(pieces, layer.bias)
        take_reflectors(layer, pieces, self._state)
        pieces, tensors = self.own_share(layer, pieces, take_tensors(layer, pieces))
        device = next(iter(tensors[0].values())).device
        sources: dict[str, LayerInput] = {}

        def source_of(name: str) -> LayerInput:
            if name not in sources:
                sources[name] = self.input_of(layer, name)
            return sources[name]

        layer.coded = coded_layer(pieces, tensors, source_of, layer.coded_dtype, self._state.int8(device))
        layer.register_buffer("coded_number", operators.number_of(layer.coded), persistent=False)
        del layer.coded_pieces
        if getattr(layer, "coded_apart", False):  # vLLM looks for a weight, and then multiplies the identity
            layer.weight = nn.Parameter(torch.empty(0, dtype=layer.coded_dtype), requires_grad=False)

    def own_share(
        self, layer: Any, pieces: list[Piece], tensors: list[dict[str, Tensor]]
    ) -> tuple[list[Piece], list[dict[str, Tensor]]]:
        """What this process multiplies, of what was loaded: all of it."""
        return pieces, tensors

    def rounds_input(self) -> list[bool]:
        """Of each matrix, whether its input is rounded."""
        layout = self._state.layout
        return [layout.inputs[layout.linears[name].input] is not None for name in self._names]

    def input_of(self, layer: Any, name: str) -> LayerInput:
        """The quantizer of an input of the layer, by its name in the layout."""
        layout, features = self._state.layout, self._state.layout.linears[self._names[0]].in_features
        rotation = self._state.reflections(name), layout.parts.get(name, 1)
        return LayerInput(features, layout.seed_of(name), layout.inputs[name], *rotation)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., features) to (..., rows) in its dtype."""
        if torch.compiler.is_compiling():
            compiled: Tensor = operators.linear(x, bias, layer.coded_number, layer.coded.rows)
            return compiled
        product: Tensor = layer.coded.compute(x, bias)
        return product

    def dequantize_weight(self, layer: Any) -> Tensor:
        """The weight (rows, features) in the layer's dtype."""
        weight: Tensor = layer.coded.dequantized().to(layer.coded_dtype)
        return weight


def take_apart(layer: Any) -> None:
    """Prepares a layer whose matrix latent attention takes apart, to multiply queries and sums with the parts.

    Raises:
        NestQuantError: the layer's input is rounded, which it would not be then.
    """
    method = layer.quant_method
    if not isinstance(method, CodedLinearMethod):
        return
    if any(method.rounds_input()):
        raise NestQuantError(
            "latent attention in vLLM takes the matrix kv_b_proj apart and multiplies states that are not rounded",
            "answers would not be those of the checkpoint",
            "quantize with --act-bits 16, or use the checkpoint in transformers",
        )
    layer.coded_apart = True


def refuse_untaken(state: ModelState) -> None:
    """Raises NestQuantError where a coded matrix is in no layer that this process has built."""
    group = get_pp_group()
    layers = None
    if group.world_size > 1:
        count = 1 + max((number_in(name) for name in state.layout.linears), default=0)
        layers = range(*get_pp_indices(count, group.rank_in_group, group.world_size))
    state.refuse_untaken(layers)
