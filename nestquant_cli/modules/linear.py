"""A Linear with a quantized weight, held in one of two forms.

packed: the words, decoded inside the product. int8: the integers v that they stand for, and next to them the index of
each block's multiplier, which is all that v does not say of its word. Either way the state dict has the words.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..codecs.nested.indices import join_indices, multiplier_indices, split_indices
from ..codecs.row_scale import row_scale_of
from ..codecs.vectors import VectorCode
from ..e8.code import BLOCK, NestedCode
from ..kernels import dense, for_device
from ..kernels.int8 import integer_product
from .gradient import StraightThrough
from .inputs import InputQuantizer
from .joined import Joined, takes
from .operators import linear, register_layer
from .product import PANEL, packed_product, product


class QuantizedLinear(nn.Linear):
    """Replaces nn.Linear, and is one for whoever looks for Linears to put adapters on.

    State: `words`, `row_scale` and `bias`; or `weight` and `bias` when only inputs are coded. The weight is frozen;
    input and bias have the straight-through gradient: backward the input counts as never rounded.

    Args:
        in_features, out_features: size of the original matrix.
        bias: whether it has one.
        source: the input quantizer, shared by the Linears with the same input.
        code: code of the weight; None keeps the original weight in 16 bits.
        dtype: dtype of the bias, and of a weight that is kept.
        device: device of the buffers.
    """

    bias: nn.Parameter | None  # type: ignore[assignment]
    words: Tensor  # (out_features, row_bytes) uint8; in the int8 form made on demand
    row_scale: Tensor  # (out_features,) int16, the bits of a bfloat16: no cast of the module may round it
    v: Tensor  # (out_features, padded) int8, in the int8 form
    indices: Tensor  # of the multipliers, as `words.join_indices` packs them, in the int8 form

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        source: InputQuantizer,
        code: NestedCode | None,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        nn.Module.__init__(self)  # without the weight of a Linear
        self.in_features, self.out_features, self.source, self.code = in_features, out_features, source, code
        self.dtype = dtype
        self._number = register_layer(self)
        self._joined: tuple[Tensor, Tensor, Joined, int] | None = None  # of this v and row scale
        self._shifted: tuple[Tensor, VectorCode, Tensor] | None = None  # of this weight and center
        if code is None:
            weight = torch.empty(out_features, in_features, dtype=dtype, device=device)
            self.weight = nn.Parameter(weight, requires_grad=False)
        else:
            for name, (shape, of) in code.tensors(out_features, source.padded).items():
                self.register_buffer(name, torch.zeros(shape, dtype=of, device=device))
        parameter = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device), requires_grad=False)
        self.register_parameter("bias", parameter if bias else None)

    def __getattr__(self, name: str) -> Any:
        """Without a `weight`, that is an empty tensor: model code asks for its dtype, and initializes it unless
        flagged. Without `words`, they are made from v."""
        buffers = self.__dict__.get("_buffers", {})
        if name == "weight" and "row_scale" in buffers:
            stand_in = torch.empty(0, dtype=self.dtype, device=self.row_scale.device)
            stand_in._is_hf_initialized = True  # type: ignore[attr-defined]
            return stand_in
        if name == "words" and "v" in buffers:
            return self._repacked()
        return super().__getattr__(name)

    @property
    def resident(self) -> str:
        """The form in memory: "packed", "int8", or "16 bit" for a weight that is not coded."""
        if self.code is None:
            return "16 bit"
        return "int8" if "v" in self._buffers else "packed"

    def resident_bytes(self) -> int:
        """Bytes of the weight in memory, the row scales included."""
        if self.code is None:
            return self.weight.nbytes
        names = ("v", "indices", "row_scale") if self.resident == "int8" else ("words", "row_scale")
        return sum(int(getattr(self, name).nbytes) for name in names)

    def hold_packed(self) -> None:
        """Goes over to the packed form."""
        if self.resident == "int8":
            words = self._repacked()
            del self.v, self.indices
            self._joined = self._shifted = None  # they hold v
            self.register_buffer("words", words)

    def hold_int8(self) -> bool:
        """Goes over to the int8 form and frees the words.

        Returns:
            whether the layer has that form now. Not so a weight in 16 bits, one whose entries need int16, and one with
            words that no encoder writes, which v could not give back.
        """
        if self.resident != "packed" or self.code is None or not self.code.int8:
            return self.resident == "int8"
        v, index = self.decoded(), multiplier_indices(self.words, self.source.padded, self.code)
        if not torch.equal(for_device(v.device).pack(v, index, self.code), self.words):
            return False
        del self.words
        self._shifted = None  # it holds the words
        self.register_buffer("v", v, persistent=False)
        self.register_buffer("indices", join_indices(index, self.code.k), persistent=False)
        return True

    def _repacked(self) -> Tensor:
        assert self.code is not None
        index = split_indices(self.indices, self.source.padded // BLOCK, self.code.k)
        return for_device(self.v.device).pack(self.v, index, self.code)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.resident == "int8":
            destination[prefix + "words"] = self._repacked()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        unpacked = self.resident == "int8"
        self.hold_packed()
        self._shifted = None
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        if unpacked:
            self.hold_int8()

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
        if self.code is None:
            values = self.source.unrotate(self.source(x).dequantized())
            y = dense.linear(values.to(self.weight.dtype), self.weight, bias)
        else:
            y = self._product(x, bias)
        return (y if y.dtype == x.dtype else y.to(x.dtype)).reshape(*x.shape[:-1], self.out_features)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        assert self.code is not None
        buffers = self._buffers  # read directly: __getattr__ costs as much as a product
        if "v" in buffers and takes(self.source, x):
            y = self._of_joined(x)
            if y is not None:
                return y if bias is None else y + bias
        scale = buffers["row_scale"].view(torch.bfloat16)  # type: ignore[union-attr]
        if "v" in buffers:
            return product(self.source(x), self._rows, self.out_features, scale, bias, x.dtype, self.shift())
        coded, shift = self.source(x), self.shift()
        fused = packed_product(coded, self.words, scale, self.code, bias, x.dtype, shift)
        if fused is not None:
            return fused
        return product(coded, self._rows, max(1, PANEL // self.source.padded), scale, bias, x.dtype, shift)

    def shift(self) -> Tensor | None:
        """V μ of the center μ of the input, (out_features,) float32, from exact sums; None where there is no center, or
        where it is not integers of int8 that are multiplied. Kept for as long as the weight stays the tensor it is."""
        code = self.source.code
        if code is None or not code.centered or self.code is None or not (self.code.int8 and code.int8):
            return None
        held: Any = self._buffers["v" if "v" in self._buffers else "words"]
        kept = self._shifted  # read once: another thread may set it meanwhile
        if kept is None or kept[0] is not held or kept[1] is not code:
            with torch.inference_mode(False), torch.no_grad():
                V = self.decoded()
                center = code.centers(self.source.padded, V.device)
                assert center is not None and center.scale is not None
                sums = integer_product(center.values, V)[0].float()
                kept = self._shifted = held, code, sums * center.scale
        return kept[2]

    def _of_joined(self, x: Tensor) -> Tensor | None:
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
        return {**self.__dict__, "_joined": None, "_shifted": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._number = register_layer(self)

    def _rows(self, start: int, stop: int) -> Tensor:
        assert self.code is not None
        v: Tensor | None = self._buffers.get("v")
        if v is not None:
            return v if stop - start == len(v) else v[start:stop]
        return for_device(self.words.device).unpack(self.words[start:stop], self.source.padded, self.code)

    def decoded(self) -> Tensor:
        """The integer weight V (out_features, padded), rotated: W·Rᵀ ≈ diag(row_scale)·V."""
        return self._rows(0, self.out_features)

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """Wᵀ ∂y with the dequantized W: (tokens, out_features) to (tokens, in_features), in its dtype."""
        if self.code is None:
            return gradient @ self.weight.to(gradient.dtype)
        scaled = (gradient.float() * row_scale_of(self.row_scale)).to(gradient.dtype)
        return self.source.unrotate((scaled @ self.decoded().to(gradient.dtype)).float()).to(gradient.dtype)

    def dequantized(self) -> Tensor:
        """The weight (out_features, in_features) float32 in the original basis."""
        if self.code is None:
            return self.weight.float()
        return self.source.unrotate(self.decoded().float() * row_scale_of(self.row_scale)[:, None])

    def extra_repr(self) -> str:
        code = "16 bit" if self.code is None else f"q={self.code.q}, multipliers={self.code.multipliers}"
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, {code}" + (", int8" if self.resident == "int8" else "")
