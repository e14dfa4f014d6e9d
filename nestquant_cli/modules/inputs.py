"""The input of quantized Linears: rotated and, when activations are coded, rounded to the nested lattice per token."""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.fit import ScaledCode
from ..kernels import for_device
from ..lattice.code import BLOCK
from ..rotation.transform import rotation


@dataclass(frozen=True)
class LinearInput:
    """What a product takes.

    Attributes:
        values: (tokens, padded features), integer v when `scale` is given, else the rotated float32 input.
        scale: (tokens,) float32 size of v = 1, or None.
    """

    values: Tensor
    scale: Tensor | None


class InputQuantizer:
    """Rotates and codes an input once for all the Linears that share it.

    The last result is kept for as long as the input tensor it came from is alive and unchanged, so that q, k and v
    (or gate and up), which are called one after the other with the same tensor, pay for one rotation.

    Args:
        features: size of the input; padded with zeros to a multiple of 8.
        seed: of the rotation signs.
        code: of the activations, None to leave them unrounded.
    """

    def __init__(self, features: int, seed: int, code: ScaledCode | None) -> None:
        self.features, self.seed, self.code = features, seed, code
        self._source: weakref.ref[Tensor] | None = None
        self._state: Tensor | int = -1  # of the source when it was coded
        self._result: LinearInput | None = None

    @property
    def padded(self) -> int:
        """Features after padding."""
        return padded_size(self.features)

    def __call__(self, x: Tensor) -> LinearInput:
        """Codes x (..., features); tokens are flattened."""
        if self._result is None or self._source is None or self._source() is not x or self._changed(x):
            self._source = weakref.ref(x, self._forget)
            self._state = x.clone() if x.is_inference() else x._version
            self._result = self.quantize(self.rotate(x))
        return self._result

    def _changed(self, x: Tensor) -> bool:
        """Whether x was changed in place. Tensors of inference mode do not count changes, so a copy is compared."""
        if isinstance(self._state, Tensor):
            return not torch.equal(self._state, x)
        return self._state != x._version

    def rotate(self, x: Tensor) -> Tensor:
        """(..., features) to (tokens, padded) float32."""
        flat = F.pad(x.reshape(-1, self.features), (0, self.padded - self.features))
        return rotation(self.padded, self.seed).apply(flat)

    def unrotate(self, y: Tensor) -> Tensor:
        """The inverse of `rotate`: (tokens, padded) to (tokens, features) float32."""
        return rotation(self.padded, self.seed).inverse(y)[:, : self.features]

    def quantize(self, rotated: Tensor) -> LinearInput:
        """Rounds rotated tokens (tokens, padded) to the activation code."""
        if self.code is None:
            return LinearInput(rotated, None)
        rotated = rotated.detach()  # rounding has no gradient
        scale = self.code.row_scale(rotated)
        v, _, _ = for_device(rotated.device).quantize(rotated, scale, self.code.code)
        return LinearInput(v, scale)

    def _forget(self, _: Any) -> None:
        self._state, self._result = -1, None

    def __getstate__(self) -> dict[str, Any]:
        return {"features": self.features, "seed": self.seed, "code": self.code}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def padded_size(features: int) -> int:
    """The next multiple of 8."""
    return -(-features // BLOCK) * BLOCK


def dequantize(coded: LinearInput) -> Tensor:
    """(tokens, padded) float32 values that the coded input stands for."""
    if coded.scale is None:
        return coded.values
    return coded.values.to(torch.float32) * coded.scale[:, None]
