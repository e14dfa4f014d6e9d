"""Linears of experts whose weights are read when they are used: for layers with more experts than fit into memory."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.dense import ExpertLinear
from .as_linears import experts_of
from .tensor_reader import TensorReader

EXPERTS = 2 << 30  # bytes of a layer's experts that are held with it


class OnDemandLinear(ExpertLinear):
    """A Linear whose weight is read from its file for each use, unless it is held. Threads may use it side by side.

    Attributes:
        read: reads the weight, to the device on which it is used.
    """

    read: Callable[[], Tensor]

    @property
    def weight(self) -> Any:  # type: ignore[override]
        """The weight (out, in)."""
        held = self._parameters["weight"]
        assert held is not None
        return self.read() if held.is_meta else held


def read_on_demand(linear: nn.Linear, reader: TensorReader, name: str, device: torch.device) -> None:
    """Has the weight of a Linear on the meta device read whenever it is used.

    Args:
        linear: the Linear, which becomes an OnDemandLinear.
        reader: reads the model's tensors.
        name: name of the weight in the model.
        device: device on which it is used.
    """
    dtype = linear.weight.dtype
    linear.__class__ = OnDemandLinear
    assert isinstance(linear, OnDemandLinear)
    linear.read = partial(_read, reader, name, dtype, device)


def beyond_budget(layer: nn.Module) -> list[str]:
    """Names of the Linears of experts in a decoder layer after the first that take `EXPERTS` bytes together."""
    total, names = 0, []
    for name, matrices in experts_of(layer).items():
        for expert, linear in matrices.named_children():
            total += stored_weight(linear).nbytes
            if total > EXPERTS:
                names.append(f"{name}.{expert}")
    return names


def held_bytes(layer: nn.Module) -> int:
    """Bytes that holding a decoder layer takes, with one expert that is read on demand."""
    beyond = [stored_weight(layer.get_submodule(name)).nbytes for name in beyond_budget(layer)]
    return sum(parameter.nbytes for parameter in layer.parameters()) - sum(beyond) + max(beyond, default=0)


def stored_weight(linear: nn.Module) -> nn.Parameter:
    """The weight of a Linear as it lies in memory or, on the meta device, does not; it is not read for this."""
    weight = linear._parameters["weight"]
    assert weight is not None
    return weight


def _read(reader: TensorReader, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    return reader.read(name, dtype).to(device)
