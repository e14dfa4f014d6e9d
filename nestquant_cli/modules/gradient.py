"""The straight-through gradient of a product with a quantized weight: backward its input counts as never rounded."""

from typing import Any

import torch
from torch import Tensor


class StraightThrough(torch.autograd.Function):
    """The product of a QuantizedLinear with x (..., in_features); gradients of x and of its bias (out_features,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, linear: Any) -> Tensor:
        ctx.linear, ctx.bias_type = linear, None if bias is None else bias.dtype
        y: Tensor = linear.compute(x, bias)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        linear, gradient = ctx.linear, gradients[0]
        of_x = input_gradient(linear, gradient) if ctx.needs_input_grad[0] else None
        return of_x, bias_gradient(gradient, ctx.bias_type) if ctx.needs_input_grad[1] else None, None


def input_gradient(linear: Any, gradient: Tensor) -> Tensor:
    """∂x = Wᵀ ∂y, (..., in_features), of the gradient ∂y (..., out_features) of a QuantizedLinear's product."""
    of_x: Tensor = linear.input_gradient(gradient.reshape(-1, linear.out_features))
    return of_x.reshape(*gradient.shape[:-1], linear.in_features)


def bias_gradient(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """∂b = Σ_tokens ∂y, (out_features,) in the bias's dtype, of ∂y (..., out_features); added up in float32."""
    return gradient.reshape(-1, gradient.shape[-1]).sum(0, dtype=torch.float32).to(dtype)
