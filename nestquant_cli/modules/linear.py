"""The Linear of a quantized model: what the Linears of all codecs share.

`multiply` chooses the product. Where a gradient is wanted, backward the input counts as never rounded (`gradient`).
"""

from typing import Any

import torch
from torch import Tensor

from ..codecs.row_scale import row_scale_of
from ..codecs.vectors import VectorCode
from ..codecs.weights import WeightCode
from ..kernels import for_device
from .gradient import StraightThrough
from .inputs import InputQuantizer
from .joined import Joined
from .multiply import Choice, multiply
from .operators import linear, register_layer
from .stored_weight import StoredWeight


class QuantizedLinear(StoredWeight):
    """Replaces nn.Linear, and is one for whoever looks for Linears to put adapters on.

    State: the tensors of the code (`words`, `row_scale`, …) and `bias`; or `weight` and `bias` when only inputs are
    coded. The weight is frozen; input and bias have the straight-through gradient.

    Args:
        in_features, out_features: size of the original matrix.
        bias: whether it has one.
        source: the input quantizer, shared by the Linears with the same input.
        code: code of the weight; None keeps the original weight in 16 bits.
        dtype: dtype of the bias, and of a weight that is kept.
        device: device of the buffers.

    Attributes:
        choices: the ways to multiply, by dtype and device of the input; chosen again when the form changes.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        source: InputQuantizer,
        code: WeightCode | None,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, source, code, dtype, device)
        self._number = register_layer(self)

    def forget(self) -> None:
        """Drops what was derived from the weight in its present form."""
        self.choices: dict[tuple[torch.dtype, torch.device], Choice] = {}
        self._joined: tuple[Tensor, Tensor, Joined, int] | None = None  # of this v and row scale
        self._shifted: tuple[Tensor, VectorCode | None, Tensor] | None = None  # of this weight and code of the input

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) to (..., out_features), in x's dtype."""
        bias = self._parameters["bias"]
        if torch.compiler.is_compiling():
            compiled: Tensor = linear(x, bias, self._number)
            return compiled
        if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            y: Tensor = StraightThrough.apply(x, bias, self)
            return y
        return self.compute(x, bias)

    def compute(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product, as `forward` gives it, without a gradient."""
        y = multiply(self, x, bias)
        y = y if y.dtype == x.dtype else y.to(x.dtype)
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], self.out_features)

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """Wᵀ ∂y with the dequantized W: (tokens, out_features) to (tokens, in_features), in its dtype."""
        if self.code is None:
            return gradient @ self.weight.to(gradient.dtype)
        scaled = (gradient.float() * row_scale_of(self.row_scale)).to(gradient.dtype)
        rotated = (scaled @ self.decoded().to(gradient.dtype)).float()
        return self.source.unrotate_rows(rotated).to(gradient.dtype)

    # What products of several calls share.

    def shift(self) -> Tensor:
        """V μ of the center μ of the input, (out_features,) float32, from exact sums; (parts, out_features) of parts.

        Kept for as long as the weight stays the tensor it is.
        """
        code = self.source.code
        held = self._buffers["v" if "v" in self._buffers else "words"]
        assert held is not None
        kept = self._shifted  # read once: another thread may set it meanwhile
        if kept is None or kept[0] is not held or kept[1] is not code:
            with torch.inference_mode(False), torch.no_grad():
                V = self.decoded()
                center = None if code is None else code.centers(self.source.part, V.device)
                assert center is not None and center.scale is not None, "an input without a center"
                product, columns = for_device(V.device).integer_product, V.split(self.source.part, 1)
                sums = [product(mu[None], of_part) for mu, of_part in zip(center.values, columns, strict=True)]
                shifts = torch.cat(sums).float() * center.scale[:, None]
                kept = self._shifted = held, code, shifts if self.source.parts > 1 else shifts[0]
        return kept[2]

    def joined_product(self, x: Tensor) -> Tensor:
        """This weight's columns (tokens, out_features) of the product that serves all Linears with this input."""
        v, scale = self._buffers["v"], self._buffers["row_scale"]
        held = self._joined  # read once: another thread may set it meanwhile
        if held is None or held[0] is not v or held[1] is not scale:  # never joined, or exchanged since
            self.set_joined(Joined(self.v, self.row_scale), 0)
            held = self._joined
            assert held is not None
        return held[2].product(self.source, x, slice(held[3], held[3] + self.out_features))

    def set_joined(self, joined: Joined, start: int) -> None:
        """Lets products with a few tokens be rows start … of `joined`, while v and row_scale are these tensors."""
        self._joined = self.v, self.row_scale, joined, start

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "choices": {}, "_joined": None, "_shifted": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._number = register_layer(self)
