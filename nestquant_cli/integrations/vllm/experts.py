"""Mixtures of experts: vLLM routes the tokens, and only the experts that they were routed to are decoded."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm.config import CUDAGraphMode, get_current_vllm_config
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.platforms import current_platform

from ...base.errors import NestQuantError
from . import operators
from .coded_experts import ACTIVATIONS, CodedExperts
from .expert_names import ExpertMatrix, expert_matrices, refuse_other_sizes
from .expert_weights import ExpertLoader, expert_parameter
from .refusals import not_served
from .state import ModelState


def expert_method(config: Any, layer: Any, prefix: str) -> Any:
    """The method of a layer of experts (RoutedExperts) of vLLM.

    Args:
        config: the `CheckpointConfig` of the model.
        layer: the layer.
        prefix: its name.

    Returns:
        a FusedMoEMethodBase of vLLM; None for experts in 16 bits.

    Raises:
        NestQuantError: the experts are not of a kind that is computed here, or are split among processes.
    """
    state: ModelState = config.state
    names = list(dict.fromkeys(state.names.below(prefix)))
    if not names:
        return None
    _refuse_other_kinds(layer, prefix)
    first, last = expert_matrices(names, layer.global_num_experts)
    if any(name.startswith(f"{prefix}.") for name in state.layout.linears):
        state.hub.renamings = []  # vLLM runs the class of transformers, with its names
    state.names.take(names, layer)
    state.experts |= {first.parameter: layer.ckpt_gate_proj_name, last.parameter: layer.ckpt_down_proj_name}
    return ExpertMethod(layer.moe_config, state, (first, last))


class ExpertMethod(FusedMoEMethodBase):
    """Computes the experts of a layer from their packed matrices.

    Args:
        moe: vLLM's configuration of the layer.
        state: what the layers of the model share.
        matrices: names in the layout of the first matrix of all experts and of the last one.
    """

    def __init__(self, moe: Any, state: ModelState, matrices: tuple[ExpertMatrix, ExpertMatrix]) -> None:
        super().__init__(moe)
        self._state, self._matrices = state, matrices

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Gives the layer the matrices of this process's experts, and parameters that load them."""
        inner = intermediate_size_per_partition
        sizes = ((2 if self.moe.is_act_and_mul else 1) * inner, hidden_size), (hidden_size, inner)
        here = _experts_here(layer)
        loaders = []
        for matrix, (rows, columns) in zip(self._matrices, sizes, strict=True):
            own = ExpertMatrix(matrix.parameter, [matrix.names[expert] for expert in here])
            linears = [self._state.layout.linears[name] for name in own.names]
            refuse_other_sizes(own, linears, rows, columns)
            loaders.append(ExpertLoader(own, linears, self._state, params_dtype))
        for prefix, loader in zip(("w13", "w2"), loaders, strict=True):
            for tensor in loader.tensors():
                load = partial(_load, layer, loader, tensor)
                layer.register_parameter(f"{prefix}_{tensor}", expert_parameter(load))
        layer.coded_loaders = loaders

    def process_weights_after_loading(self, layer: Any) -> None:
        """Makes of what was loaded what is multiplied."""
        if not hasattr(layer, "coded_loaders"):
            return  # done before
        self._state.place = self._matrices[0].names[0]
        for loader in layer.coded_loaders:
            loader.finish()
        up, down = (loader.matrices for loader in layer.coded_loaders)
        layer.coded = CodedExperts(up, down, ACTIVATIONS[layer.activation.value])
        layer.coded_number = operators.number_of(layer.coded)
        del layer.coded_loaders
        for name in [name for name, parameter in layer.named_parameters() if hasattr(parameter, "weight_loader")]:
            delattr(layer, name)

    def get_fused_moe_quant_config(self, layer: Any) -> None:
        """None: no kernel of vLLM is used."""

    def apply(
        self,
        layer: Any,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any,
        shared_experts_input: Tensor | None,
    ) -> Tensor:
        """What the routed experts of this process give: (tokens, hidden size). vLLM computes shared ones by itself."""
        if layer.expert_map is not None:
            local = layer.expert_map[topk_ids.long()]
            topk_ids = torch.where(local < 0, layer.local_num_experts, local)
        if torch.compiler.is_compiling():
            compiled: Tensor = operators.experts(x, topk_weights, topk_ids, layer.coded_number)
            return compiled
        product: Tensor = layer.coded.routed(x, topk_weights, topk_ids)
        return product


def _refuse_other_kinds(layer: Any, prefix: str) -> None:
    """Raises NestQuantError for a layer that needs more than `CodedExperts` computes, or that cannot run here."""
    moe = layer.moe_config
    if moe.has_bias:
        raise not_served(f"the experts of {prefix} have biases")
    settings = (getattr(layer, f"swiglu_{name}", None) for name in ("limit", "alpha", "beta"))
    if layer.activation.value not in ACTIVATIONS or any(value is not None for value in settings):
        raise not_served(f"the experts of {prefix} have the activation {layer.activation.value}")
    if layer.apply_router_weight_on_input:
        raise not_served(f"the inputs of the experts of {prefix} are weighted, and not their outputs")
    if moe.moe_parallel_config.tp_size > 1:
        raise NestQuantError(
            f"each expert of {prefix} is split among {moe.moe_parallel_config.tp_size} processes, and the rotation of "
            "its inner states mixes the whole of them",
            "the checkpoint was not loaded",
            "add --enable-expert-parallel, which gives each process whole experts",
        )
    graphs = get_current_vllm_config().compilation_config.cudagraph_mode
    if current_platform.is_cuda_alike() and graphs is not None and graphs != CUDAGraphMode.NONE:
        raise NestQuantError(
            f"which experts of {prefix} have tokens is known when they run, and CUDA graphs hold one case",
            "the checkpoint was not loaded",
            "add --enforce-eager",
        )


def _experts_here(layer: Any) -> list[int]:
    """Numbers of the experts of this process, in its order."""
    local = {
        layer._map_global_expert_id_to_local_expert_id(expert): expert for expert in range(layer.global_num_experts)
    }
    return [expert for number, expert in sorted(local.items()) if number >= 0]


def _load(layer: Any, loader: ExpertLoader, tensor: str, expert: int, shard: str, loaded: Tensor) -> bool:
    """Hands a tensor that vLLM loads on; returns whether its expert is in this process."""
    number: int = layer._map_global_expert_id_to_local_expert_id(expert)
    if number < 0:
        return False
    loader.load(tensor, number, loaded)
    return True
