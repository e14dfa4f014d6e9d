"""What is tuned, as one vector: the row scales of packed weights, the gains of norms and all biases.

An entry θ moves its parameter in the parameter's own units, so that one rate fits all:

    row scale s₀·exp(θ)          gain or bias p₀ + rms(p₀)·θ

The model always computes with the values as they will be stored, in 16 bits; gradients ignore that rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..modules.straight_through import DifferentiableLinear, make_differentiable


@dataclass(frozen=True)
class _Tuned:
    """One tensor of the checkpoint: `linear` is None unless it holds row scales."""

    name: str
    parameter: nn.Parameter
    linear: DifferentiableLinear | None
    start: Tensor  # float32
    size: float  # of θ = 1 where the parameter is no row scale


class Tunables:
    """The parameters of a model that are tuned.

    Args:
        model: packed; it is made differentiable, and all its other parameters are frozen.

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
        """Takes `theta` (count,) and changes the model accordingly."""
        self.theta = theta.clone()
        for item, own in self._parts(theta):
            device = item.start.device
            if item.linear is not None:
                item.linear.set_scale(item.start * own.to(device).exp())
            else:
                with torch.no_grad():
                    item.parameter.copy_(item.start + item.size * own.to(device).view(item.start.shape))

    def take_gradient(self) -> Tensor:
        """The gradient (count,) in θ that has come together in the parameters, which forget it."""
        gradient = torch.zeros_like(self.theta)
        for item, own in self._parts(gradient):
            grad = item.parameter.grad
            if grad is not None:
                unit = item.parameter.detach() if item.linear is not None else item.size
                own.copy_((grad.float() * unit).flatten())
                item.parameter.grad = None
        return gradient

    def tensors(self) -> dict[str, Tensor]:
        """The tuned tensors by their names in a checkpoint, as they are stored, on the CPU."""
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
    """Gains of norms and biases are the parameters that are vectors."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and parameter.is_floating_point():
            start = parameter.detach().float().clone()
            yield _Tuned(name, parameter, None, start, float(start.square().mean().sqrt()) or 1.0)
