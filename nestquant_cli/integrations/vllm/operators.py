"""What torch.compile puts into a graph of vLLM's for a coded layer.

vLLM keeps compiled graphs on disk, so nothing in them may depend on the process: a layer is known by the number in a
tensor, which is an input of the graph like a weight. Layers of one shape then have the same graph, compiled once.
"""

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor

_numbers = itertools.count()
_layers: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()
_library = torch.library.Library("nestquant_vllm", "DEF")  # torch.library.custom_op takes 3 times as long for a call


def number_of(layer: Any) -> Tensor:
    """A number for an object with `compute(x, bias)`, for as long as it lives: () int64 on the CPU."""
    number = next(_numbers)
    _layers[number] = layer
    return torch.tensor(number, device="cpu")


def _linear(x: Tensor, bias: Tensor | None, number: Tensor, rows: int) -> Tensor:
    """x (..., features) to (..., rows), by the layer with this number."""
    y: Tensor = _layers[int(number)].compute(x, bias)
    return y


def _fake_linear(x: Tensor, bias: Tensor | None, number: Tensor, rows: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


_library.define("linear(Tensor x, Tensor? bias, Tensor number, int rows) -> Tensor")
_library.impl("linear", _linear, "CompositeExplicitAutograd")
torch.library.register_fake("nestquant_vllm::linear", _fake_linear, lib=_library)


def _experts(x: Tensor, weights: Tensor, choice: Tensor, number: Tensor) -> Tensor:
    """x (tokens, features) to the same shape, by the layer of experts with this number."""
    y: Tensor = _layers[int(number)].routed(x, weights, choice)
    return y


def _fake_experts(x: Tensor, weights: Tensor, choice: Tensor, number: Tensor) -> Tensor:
    return torch.empty_like(x)


_library.define("experts(Tensor x, Tensor weights, Tensor choice, Tensor number) -> Tensor")
_library.impl("experts", _experts, "CompositeExplicitAutograd")
torch.library.register_fake("nestquant_vllm::experts", _fake_experts, lib=_library)


linear = torch.ops.nestquant_vllm.linear
experts = torch.ops.nestquant_vllm.experts
