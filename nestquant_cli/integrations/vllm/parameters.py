"""The parameters that vLLM loads a coded layer's tensors into, by its own classes and loaders."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from vllm.model_executor.parameter import ChannelQuantScaleParameter, PerTensorScaleParameter


class RowsParameter(ChannelQuantScaleParameter):
    """A tensor with the rows of all the matrices in a layer, one below the other; vLLM slices and places them.

    Rows of different matrices may have different widths: words of mixed rates, scales of other groups. The narrower
    ones are filled up with zeros.
    """

    def __init__(self, data: Tensor, weight_loader: Callable[..., Any]) -> None:
        super().__init__(data=data, weight_loader=weight_loader, output_dim=0)

    def load_merged_column_weight(self, loaded_weight: Tensor, **arguments: Any) -> None:
        super().load_merged_column_weight(self._widened(loaded_weight), **arguments)

    def load_qkv_weight(self, loaded_weight: Tensor, **arguments: Any) -> None:
        super().load_qkv_weight(self._widened(loaded_weight), **arguments)

    def _widened(self, loaded: Tensor) -> Tensor:
        if loaded.dim() < self.data.dim():
            loaded = loaded[:, None]
        missing = self.data.shape[-1] - loaded.shape[-1] if loaded.dim() > 1 else 0
        return F.pad(loaded, (0, missing)) if missing > 0 else loaded


class WholeParameter(PerTensorScaleParameter):
    """Tensors that each matrix of a layer has once, whatever its rows: lattices, reflectors.

    Attributes:
        loaded: the tensors as they are stored, by the number of the layer's output.
    """

    def __init__(self, outputs: int, dtype: torch.dtype, device: torch.device | None = None) -> None:
        data = torch.zeros(outputs, dtype=dtype, device=device)
        super().__init__(data=data, weight_loader=self._load)
        self.loaded: dict[int, Tensor] = {}

    def __new__(cls, outputs: int, dtype: torch.dtype, device: torch.device | None = None) -> "WholeParameter":
        parameter: WholeParameter = super().__new__(cls, torch.zeros(outputs, dtype=dtype, device=device))
        return parameter

    def _load(self, parameter: Any, loaded: Tensor, shard: Any = None) -> None:
        numbers: Iterable[int]
        if shard is None:
            numbers = range(self.data.shape[0])
        elif isinstance(shard, tuple):
            numbers = shard
        else:
            numbers = (self._shard_id_as_int(shard),)
        for number in numbers:
            self.loaded[number] = loaded.to(self.data.device, copy=True)
