"""The parameters that are tuned, as one vector: scales of packed weights, gains of norms and all biases.

An entry θ moves its parameter in the parameter's own units, so that one rate fits all:

    scale s₀·exp(θ)          gain or bias p₀ + rms(p₀)·θ

A scale is that of a row, or of a group of a row's entries. What codes tokens, keys and values is not tuned. Through
straight-through gradients a center has no effect, as what is subtracted is added again. A factor of a channel has that
of a gain, or of a row's scale in the matrix before it. One unit for all tokens, the best of nine for each input, would
take 0.05 dB off their error.

The model always computes with the values as they will be stored, in 16 bits; gradients ignore that rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..checkpoint.towers import tower_tensors
from ..models.processor_files import has_processor
from ..models.structure import find_decoder
from ..modules.straight_through import DifferentiableLinear, make_differentiable


@dataclass(frozen=True)
class _Tuned:
    """One tuned tensor of the checkpoint.

    Attributes:
        name: name of the tensor in the checkpoint.
        parameter: parameter of the model that collects its gradient.
        linear: Linear of scales; None for a gain or bias.
        start: untuned values, float32.
        size: change for θ = 1 of a gain or bias, the root mean square of its untuned values.
    """

    name: str
    parameter: nn.Parameter
    linear: DifferentiableLinear | None
    start: Tensor
    size: float


class Tunables:
    """The tuned parameters of a packed model.

    Args:
        model: a packed model; it is made differentiable, and all its other parameters are frozen.

    Attributes:
        theta: (count,) float32 on the CPU, zeros at first.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        model.requires_grad_(False)
        vectors = list(_vectors(model))
        self._tuned = [*_row_scales(make_differentiable(model)), *vectors]
        for item in self._tuned:
            item.parameter.requires_grad_(True)
        self.theta = torch.zeros(sum(item.parameter.numel() for item in self._tuned))

    def set(self, theta: Tensor) -> None:
        """Sets the parameters of the model to `theta` (count,)."""
        self.theta = theta.clone()
        for item, own in self._parts(theta):
            device = item.start.device
            if item.linear is not None:
                item.linear.set_scale(item.start * own.to(device).exp().view(item.start.shape))
            else:
                with torch.no_grad():
                    item.parameter.copy_(item.start + item.size * own.to(device).view(item.start.shape))

    def take_gradient(self) -> Tensor:
        """Returns the gradient (count,) in θ that backward passes have added up, and clears it."""
        gradient = torch.zeros_like(self.theta)
        for item, own in self._parts(gradient):
            grad = item.parameter.grad
            if grad is not None:
                unit = item.parameter.detach() if item.linear is not None else item.size
                own.copy_((grad.float() * unit).flatten())
                item.parameter.grad = None
        return gradient

    def tensors(self) -> dict[str, Tensor]:
        """The tuned tensors by their names in a checkpoint, in the dtypes that are stored, on the CPU."""
        return {
            item.name: (item.parameter if item.linear is None else item.linear.linear.row_scale).detach().cpu().clone()
            for item in self._tuned
        }

    def _parts(self, vector: Tensor) -> Iterator[tuple[_Tuned, Tensor]]:
        sizes = [item.parameter.numel() for item in self._tuned]
        yield from zip(self._tuned, vector.split(sizes), strict=True)


def _row_scales(linears: dict[str, DifferentiableLinear]) -> Iterator[_Tuned]:
    for name, linear in linears.items():
        if linear.scale is not None:
            yield _Tuned(f"{name}.row_scale", linear.scale, linear, linear.scale.detach().clone(), 1.0)


def _vectors(model: PreTrainedModel) -> Iterator[_Tuned]:
    """Gains of norms and biases: all parameters that are vectors, but for those of towers, which text does not pass."""
    towers = _towers(model)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and parameter.is_floating_point() and name not in towers:
            start = parameter.detach().float().clone()
            yield _Tuned(name, parameter, None, start, float(start.square().mean().sqrt()) or 1.0)


def _towers(model: PreTrainedModel) -> set[str]:
    names = [name for name, _ in model.named_parameters()]
    return tower_tensors(names, find_decoder(model).prefix) if has_processor(model.config) else set()
