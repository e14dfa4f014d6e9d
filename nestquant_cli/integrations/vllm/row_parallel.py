"""Layers whose input is split among the processes of a tensor-parallel model: o_proj, down_proj."""

from typing import Any

from ...base.errors import NestQuantError


def row_parallel_method(config: Any, layer: Any, prefix: str, names: list[str]) -> Any:
    """The method of a RowParallelLinear of vLLM with more than one process.

    Args:
        config: the `VllmConfig` of the model.
        layer: the layer; `input_size_per_partition`, `tp_rank` and `tp_size` are set already.
        prefix: its name.
        names: names of its matrices in the layout.

    Raises:
        NestQuantError: the rotation of the input mixes what the processes hold.
    """
    raise NestQuantError(
        f"the input of {prefix} is split among {layer.tp_size} processes, and its rotation mixes the whole of it",
        "the checkpoint was not loaded",
        "use --tensor-parallel-size 1",
    )
