"""A quantized weight in memory, in one of two forms: the stored bytes, or int8 integers for speed."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..codecs.row_scale import row_scale_of
from ..codecs.weights import WeightCode
from .inputs import InputQuantizer
from .multiply import WeightForm


class StoredWeight(nn.Linear):
    """The tensors of a quantized weight and of its bias; saving gives the same state from either form.

    A codec's Linear writes `decode`, and `values` where a row is not integers with one scale. One whose weight has an
    int8 form writes `to_int8` and `to_words`, which convert one form to the other; one whose rows are integers with one
    scale says so in `form_of`.

    Args:
        in_features, out_features: size of the original matrix.
        bias: whether it has one.
        source: the input quantizer, shared by the Linears with the same input.
        code: code of the weight; None keeps the original weight in 16 bits.
        dtype: dtype of the bias, and of a weight that is kept.
        device: device of the buffers.
    """

    # Some families initialize every nn.Linear by the shape of its weight, which is empty here, when they are loaded.
    _is_hf_initialized = True
    int8_buffers: ClassVar[tuple[str, ...]] = ("v",)  # what stands in place of `words` in the int8 form
    tied = False  # whether the tensors are those of an embedding, which saves and loads them (`embedding.tie`)

    bias: nn.Parameter | None  # type: ignore[assignment]
    words: Tensor  # (out_features, bytes) uint8, the stored entries; in the int8 form made on demand
    row_scale: Tensor  # (out_features,) int16, the bits of a bfloat16: no cast of the module may round it
    v: Tensor  # (out_features, padded) int8, in the int8 form

    _is_hf_initialized = True  # model code may initialize a Linear by the shape of its weight, of which there is none

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
        nn.Module.__init__(self)  # without the weight of a Linear
        self.in_features, self.out_features, self.source = in_features, out_features, source
        self.code: Any = code  # each codec's Linear knows its own
        self.dtype = dtype
        self.forget()
        if code is None:
            weight = torch.empty(out_features, in_features, dtype=dtype, device=device)
            self.weight = nn.Parameter(weight, requires_grad=False)
        else:
            for name, (shape, of) in code.tensors(out_features, source.padded).items():
                self.register_buffer(name, torch.zeros(shape, dtype=of, device=device))
        parameter = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device), requires_grad=False)
        self.register_parameter("bias", parameter if bias else None)

    def forget(self) -> None:
        """Drops what was derived from the weight in its present form; called when the form changes."""

    # What a codec writes.

    @classmethod
    def form_of(cls, code: Any, resident: str) -> WeightForm:
        """What the choice of a product depends on, of a weight with this code that is to be "packed" or "int8"."""
        return WeightForm(resident)

    def decode(self, start: int, stop: int) -> Tensor:
        """Rows start … stop of `words` in units of the row scales, rotated: (rows, padded) int8, int16 or float32."""
        raise NotImplementedError

    def values(self, start: int, stop: int) -> Tensor:
        """Rows start … stop of the weight, rotated: (rows, padded) float32."""
        return self.integers(start, stop).float() * row_scale_of(self.stored("row_scale")[start:stop])[:, None]

    def to_int8(self) -> Mapping[str, Tensor] | None:
        """The tensors `int8_buffers` that say all of `words`; None where they cannot."""
        return None

    def to_words(self) -> Tensor:
        """The words that `int8_buffers` were made from."""
        raise NotImplementedError

    def describe_code(self) -> str:
        """The code in a few words, for the module's repr."""
        return str(self.code)

    # The two forms.

    @property
    def resident(self) -> str:
        """The form in memory: "packed", "int8", or "16 bit" for a weight that is not coded."""
        if self.code is None:
            return "16 bit"
        return "int8" if "v" in self._buffers else "packed"

    def form(self) -> WeightForm:
        """What the choice of a product depends on, as the weight is now."""
        return WeightForm("16 bit") if self.code is None else self.form_of(self.code, self.resident)

    def resident_bytes(self) -> int:
        """Bytes of the weight in memory, with its scales and tables."""
        if self.code is None:
            return self.weight.nbytes
        return sum(buffer.nbytes for buffer in self._buffers.values() if buffer is not None)

    def hold_packed(self) -> None:
        """Goes over to the packed form."""
        if self.resident == "int8":
            words = self.to_words()
            for name in self.int8_buffers:
                delattr(self, name)
            self.forget()
            self.register_buffer("words", words)

    def hold_int8(self) -> bool:
        """Goes over to the int8 form and frees the words.

        Returns:
            whether the layer has that form now. Not so a weight in 16 bits, one whose entries are no int8 integers,
            and one with words that no encoder writes, which integers could not give back.
        """
        if self.resident != "packed" or not self.code.int8:
            return self.resident == "int8"
        buffers = self.to_int8()
        if buffers is None:
            return False
        del self.words
        self.forget()
        for name in self.int8_buffers:
            self.register_buffer(name, buffers[name], persistent=False)
        return True

    def __getattr__(self, name: str) -> Any:
        """Without a `weight`, that is an empty tensor: model code asks for its dtype, and initializes it unless
        flagged. Without `words`, they are made from v."""
        buffers = self.__dict__.get("_buffers", {})
        if name == "weight" and "row_scale" in buffers:
            stand_in = torch.empty(0, dtype=self.dtype, device=self.row_scale.device)
            stand_in._is_hf_initialized = True  # type: ignore[attr-defined]
            return stand_in
        if name == "words" and "v" in buffers:
            return self.to_words()
        return super().__getattr__(name)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self.tied:
            if self.bias is not None:
                destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()
            return
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.resident == "int8":
            destination[prefix + "words"] = self.to_words()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        if self.tied:
            buffers, self._buffers = self._buffers, {}
            super()._load_from_state_dict(state_dict, prefix, *arguments)
            self._buffers = buffers
            return
        unpacked = self.resident == "int8"
        self.hold_packed()
        self.forget()
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        if unpacked:
            self.hold_int8()

    # The weight.

    def stored(self, name: str) -> Tensor:
        """A buffer, read past `__getattr__`, which costs as much as a small product."""
        return self._buffers[name]  # type: ignore[return-value]

    def scale(self) -> Tensor:
        """The row scales as bfloat16, (out_features,), or (out_features, groups) where rows have groups."""
        return self._buffers["row_scale"].view(torch.bfloat16)  # type: ignore[union-attr]

    def integers(self, start: int, stop: int) -> Tensor:
        """Rows start … stop in units of the row scales, from whichever form, as `decode` gives them."""
        v: Tensor | None = self._buffers.get("v")
        if v is None:
            return self.decode(start, stop)
        return v if stop - start == len(v) else v[start:stop]

    def decoded(self) -> Tensor:
        """The weight in units of its row scales (out_features, padded), rotated: W·Rᵀ ≈ diag(row_scale)·V."""
        return self.integers(0, self.out_features)

    def dequantized(self) -> Tensor:
        """The weight (out_features, in_features) float32 in the original basis."""
        return (
            self.weight.float() if self.code is None else self.source.unrotate_rows(self.values(0, self.out_features))
        )

    def extra_repr(self) -> str:
        code = "16 bit" if self.code is None else self.describe_code()
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, {code}" + (", int8" if self.resident == "int8" else "")
