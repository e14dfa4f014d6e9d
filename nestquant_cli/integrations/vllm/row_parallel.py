"""Layers whose input is split among the processes of a tensor-parallel model: o_proj, down_proj.

Where the checkpoint has the input in N parts and the number of processes divides N, each process rotates and rounds its
own parts and multiplies its columns. Otherwise the processes exchange their slices of the input, so that each has the
whole, and multiply some rows each. vLLM adds up what they give; rows of other processes are zeros then.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import register_weight_loader_v2_supported_method

from .layer import LayerInput
from .linear import CodedLinearMethod
from .pieces import Piece
from .shares import Share, has_parts, input_of_parts, some_columns, some_rows

logger = init_logger("vllm.nestquant")


def row_parallel_method(config: Any, layer: Any, prefix: str, names: list[str]) -> Any:
    """The method of a RowParallelLinear of vLLM with more than one process.

    Args:
        config: the `CheckpointConfig` of the model.
        layer: the layer; `input_size_per_partition`, `tp_rank` and `tp_size` are set already.
        prefix: its name.
        names: names of its matrices in the layout.
    """
    state = config.state
    if all(has_parts(state.layout, name, layer.tp_size) for name in names):
        return PartsMethod(state, names)
    if not state.gathers:
        state.gathers = True
        logger.info(
            "%s gets its whole input from all %d processes: its rotation mixes what they hold. A checkpoint made by "
            "nestquant quantize --tensor-parallel %d saves that",
            prefix,
            layer.tp_size,
            layer.tp_size,
        )
    return GatheringMethod(state, names)


class _RowParallelMethod(CodedLinearMethod):
    """Loads the stored tensors whole; each process then keeps its share."""

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        *sizes: Any,
        **arguments: Any,
    ) -> None:
        """Gives the layer parameters for the checkpoint's tensors, with all columns."""
        super().create_weights(layer, input_size, output_partition_sizes, input_size, *sizes, **arguments)


@register_weight_loader_v2_supported_method
class PartsMethod(_RowParallelMethod):
    """Rotates and rounds the parts of the input that this process has, and multiplies its columns."""

    def own_share(
        self, layer: Any, pieces: list[Piece], tensors: list[dict[str, Tensor]]
    ) -> tuple[list[Piece], list[dict[str, Tensor]]]:
        """The columns of this process."""
        share, layout = Share(layer.tp_rank, layer.tp_size), self._state.layout
        own = [some_columns(layout, piece, loaded, share) for piece, loaded in zip(pieces, tensors, strict=True)]
        return [piece for piece, _ in own], [loaded for _, loaded in own]

    def input_of(self, layer: Any, name: str) -> LayerInput:
        """The quantizer of the process's parts of the input."""
        return input_of_parts(self._state.layout, name, Share(layer.tp_rank, layer.tp_size))


@register_weight_loader_v2_supported_method
class GatheringMethod(_RowParallelMethod):
    """Takes the whole input from all processes, and computes the rows of this one."""

    def own_share(
        self, layer: Any, pieces: list[Piece], tensors: list[dict[str, Tensor]]
    ) -> tuple[list[Piece], list[dict[str, Tensor]]]:
        """The rows of this process."""
        ((piece, loaded),) = zip(pieces, tensors, strict=True)  # no layer of this kind is fused
        share = Share(layer.tp_rank, layer.tp_size)
        layer.coded_rows = share.rows(piece.place.rows)
        own, rows = some_rows(piece, loaded, share)
        return [own], [rows]

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """This process's slice x (..., features / processes) to (..., rows), zeros but for its own rows.

        Each process adds the layer's bias to its own rows. vLLM hands the whole of it to the first one.
        """
        start, stop = layer.coded_rows
        own = None if layer.bias is None or layer.skip_bias_add else layer.bias[start:stop]
        y = super().apply(layer, tensor_model_parallel_all_gather(x.contiguous(), dim=-1), own)
        return F.pad(y, (start, layer.output_size - stop))
