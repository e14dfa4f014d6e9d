"""Gradients through a packed model: forward it computes what it always does, backward as if nothing had been rounded.

Rounding activations, keys and values has no gradient of use; the straight-through one takes it for the identity. With
W ≈ diag(s)·V·R, V what the words stand for in units of the row scales and R the rotation, a product y = W x + b has

    ∂x = (V R)ᵀ (s·∂y)      ∂s = Σ_tokens ∂y·(y − b) / s      ∂b = Σ_tokens ∂y

Where groups g of a row's entries have scales of their own, W ≈ (S∘V)·R and, with the input x̂ as it was multiplied,

    ∂x = Rᵀ (S∘V)ᵀ ∂y       ∂s_og = Σ_{i in g} V_oi·(Σ_tokens ∂y_o x̂_i)
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..codecs.row_scale import row_scale_bits, row_scale_of
from ..models.structure import find_decoder
from .attach import quantized_linears
from .linear import QuantizedLinear


class DifferentiableLinear(nn.Module):
    """A QuantizedLinear whose input, row scales and bias have gradients; its words are fixed.

    Args:
        linear: the Linear that computes the forward.

    Attributes:
        scale: row scales (out_features,) or (out_features, groups) float32 as a parameter, changed by `set_scale`; None
            where the weight is not coded.
        rows: V R (out_features, in_features) in the Linear's dtype, or the weight that is not coded; None with groups.
    """

    def __init__(self, linear: QuantizedLinear) -> None:
        super().__init__()
        self.linear = linear
        if linear.code is None:
            self.scale = None
            self.rows: Tensor | None = linear.weight.detach()
        else:
            self.scale = nn.Parameter(row_scale_of(linear.row_scale).clone())
            self.rows = None
            if self.scale.dim() == 1:
                self.rows = linear.source.unrotate_rows(linear.decoded().float()).to(linear.dtype)

    def set_scale(self, scale: Tensor) -> None:
        """Takes scales, of the shape of `scale`, as they will be stored, rounded to bfloat16."""
        assert self.scale is not None
        self.linear.row_scale.copy_(row_scale_bits(scale))
        with torch.no_grad():
            self.scale.copy_(row_scale_of(self.linear.row_scale))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) to (..., out_features), in x's dtype."""
        y: Tensor = _Product.apply(x, self.scale, self.linear.bias, self)
        return y


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | None, bias: Tensor | None, module: DifferentiableLinear) -> Tensor:
        y: Tensor = module.linear(x)
        ctx.module = module
        kept = x if module.rows is None else y
        ctx.save_for_backward(kept if ctx.needs_input_grad[1] else None, scale, bias)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (grad,) = gradients
        kept, scale, bias = ctx.saved_tensors
        linear, rows = ctx.module.linear, ctx.module.rows
        flat = grad.reshape(-1, grad.shape[-1])
        of_scale = of_bias = None
        if kept is not None and rows is None:
            of_scale = linear.scale_gradient(kept, flat)
        elif kept is not None:
            product = kept.reshape(flat.shape).float()
            of_scale = (flat.float() * (product if bias is None else product - bias)).sum(0) / scale
        if ctx.needs_input_grad[2]:
            of_bias = flat.sum(0, dtype=torch.float32).to(bias.dtype)
        if not ctx.needs_input_grad[0]:
            return None, of_scale, of_bias, None
        if rows is None:
            of_x = linear.input_gradient(flat)
        else:
            scaled = flat if scale is None else flat * scale.to(flat.dtype)
            of_x = scaled.to(rows.dtype) @ rows
        return of_x.to(grad.dtype).reshape(*grad.shape[:-1], -1), of_scale, of_bias, None


def make_differentiable(model: PreTrainedModel) -> dict[str, DifferentiableLinear]:
    """Replaces the quantized Linears of a packed model's layers, whose forward stays the same to the bit.

    A quantized head stays: its rows may be those of the embedding, which have no gradient.

    Returns:
        the new modules by the names of the Linears that they replace.
    """
    modules, inside = {}, find_decoder(model).prefix + "."
    for name, linear in quantized_linears(model).items():
        if not name.startswith(inside):
            continue
        parent, _, child = name.rpartition(".")
        modules[name] = DifferentiableLinear(linear)
        setattr(model.get_submodule(parent), child, modules[name])
    return modules
