"""The input of quantized Linears: rotated and, when activations are coded, rounded per token."""

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.centered import CenteredCode, nested_code
from ..codecs.protocol import Rounded, VectorCode
from ..lattice.code import BLOCK
from ..rotation.reflections import Reflected, Reflections
from ..rotation.transform import Identity, Rotation, rotation

# What a product takes: (tokens, padded features). Where tokens are not coded, values may be bfloat16, too.
LinearInput = Rounded


class InputQuantizer:
    """Rotates and codes an input once for all the Linears that share it.

    What was made of the last input is kept for as long as that tensor is alive and unchanged, so that q, k and v (or
    gate and up), which are called one after the other with the same tensor, pay for one rotation.

    Args:
        features: size of the input; padded with zeros to a multiple of 8.
        seed: of the rotation signs; None does not rotate.
        code: of the activations, None to leave them unrounded.
        reflections: a learned rotation behind the other one.
    """

    def __init__(
        self, features: int, seed: int | None, code: VectorCode | None, reflections: Reflections | None = None
    ) -> None:
        self.features, self.seed, self.code, self.reflections = features, seed, code, reflections
        self._source: weakref.ref[Tensor] | None = None
        self._state: Tensor | int = -1  # of the source when it was coded
        self._results: dict[Hashable, Any] = {}

    @property
    def padded(self) -> int:
        """Features after padding."""
        return padded_size(self.features)

    @property
    def plain(self) -> bool:
        """Whether the rotation is the Hadamard rotation alone, which kernels know."""
        return self.seed is not None and self.reflections is None

    def __call__(self, x: Tensor) -> LinearInput:
        """Codes x (..., features); tokens are flattened."""
        coded: LinearInput = self.once(x, None, self.code_tokens)
        return coded

    def once(self, x: Tensor, key: Hashable, make: Callable[[Tensor], Any]) -> Any:
        """make(x as (tokens, features)), called once for each key while x stays as it is."""
        if self._source is None or self._source() is not x or self._changed(x):
            self._source = weakref.ref(x, self._forget)
            self._state, self._results = _state_of(x), {}
        if key not in self._results:
            self._results[key] = make(x.reshape(-1, self.features))
        return self._results[key]

    def _changed(self, x: Tensor) -> bool:
        """Whether x was changed in place since it was coded."""
        state = self._state
        return not torch.equal(state, x) if isinstance(state, Tensor) else state != _state_of(x)

    def code_tokens(self, x: Tensor) -> LinearInput:
        """Rotates and codes tokens (tokens, features); on the CPU in one pass over memory."""
        if x.device.type == "cpu":
            result = self._on_cpu(x.detach())
            if result is not None:
                return result
        return self.quantize(self.rotate(x))

    def _on_cpu(self, x: Tensor) -> LinearInput | None:
        from ..kernels import cpu_input

        if not self.plain:
            return None
        assert self.seed is not None
        if self.code is None:
            rotated = cpu_input.rotate(x, self.padded, self.seed)
            return None if rotated is None else LinearInput(rotated, None)
        nested = nested_code(self.code)
        if nested is None:
            return None
        center = self.code.center(self.padded) if isinstance(self.code, CenteredCode) else None
        coded = cpu_input.encode(x, self.padded, self.seed, nested.code, nested.unit, center)
        return None if coded is None else LinearInput(*coded, center)

    def rotate(self, x: Tensor) -> Tensor:
        """(..., features) to (tokens, padded) float32."""
        flat = F.pad(x.reshape(-1, self.features), (0, self.padded - self.features))
        return self.turn.apply(flat)

    def unrotate(self, y: Tensor) -> Tensor:
        """The inverse of `rotate`: (tokens, padded) to (tokens, features) float32."""
        return self.turn.inverse(y)[:, : self.features]

    @property
    def turn(self) -> Rotation | Identity | Reflected:
        """The rotation of padded tokens."""
        first = rotation(self.padded, self.seed)
        return first if self.reflections is None else Reflected(first, self.reflections)

    def quantize(self, rotated: Tensor) -> LinearInput:
        """Rounds rotated tokens (tokens, padded) to the activation code."""
        if self.code is None:
            return LinearInput(rotated, None)
        return self.code.round(rotated.detach())  # rounding has no gradient

    def _forget(self, _: Any) -> None:
        self._source, self._state, self._results = None, -1, {}

    def __getstate__(self) -> dict[str, Any]:
        return {"features": self.features, "seed": self.seed, "code": self.code, "reflections": self.reflections}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def padded_size(features: int) -> int:
    """The next multiple of 8."""
    return -(-features // BLOCK) * BLOCK


def _state_of(x: Tensor) -> Tensor | int:
    """What differs after x was changed in place. Tensors of inference mode do not count changes: contents tell."""
    if not x.is_inference():
        return x._version
    if x.device.type == "cpu":
        from ..kernels.cpu_input import fingerprint

        mark = fingerprint(x)
        if mark is not None:
            return mark
    return x.clone()
