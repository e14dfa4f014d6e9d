"""The input of quantized Linears: rotated and, when activations are coded, rounded per token."""

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.vectors import Rounded, VectorCode
from ..e8.code import BLOCK
from ..kernels import Kernels, for_device
from ..rotation.parted import parted_rotation
from ..rotation.reflections import AnyRotation, Reflected, Reflections
from ..rotation.seeds import ScaledSeed, Seed, dual


class InputQuantizer:
    """Rotates and codes an input once for all the Linears that share it.

    What was made of the last input is kept for as long as that tensor is alive and unchanged, so that q, k and v (or
    gate and up), which are called one after the other with the same tensor, pay for one rotation. Each thread keeps its
    own, so that threads may call one model at the same time.

    Args:
        features: size of the input; padded with zeros to a multiple of 8.
        seed: seed of the rotation signs, with factors of the channels if there are any; None does not rotate.
        code: code of the activations, None to leave them unrounded.
        reflections: a learned rotation behind the other one.
        parts: number of equal parts, multiples of 8, that are rotated and coded each by itself; not with reflections.
    """

    def __init__(
        self,
        features: int,
        seed: Seed | None,
        code: VectorCode | None,
        reflections: Reflections | None = None,
        parts: int = 1,
    ) -> None:
        self.features, self.seed, self.code, self.reflections, self.parts = features, seed, code, reflections, parts
        self._of_thread = threading.local()  # `last`: what the thread made of its last input

    @property
    def padded(self) -> int:
        """Features after padding."""
        return padded_size(self.features)

    @property
    def part(self) -> int:
        """Features of one part after padding."""
        return self.padded // self.parts

    @property
    def plain(self) -> bool:
        """Whether the rotation is the Hadamard rotation alone, which kernels know."""
        return self.seed is not None and self.reflections is None

    def __call__(self, x: Tensor) -> Rounded:
        """Rotates and codes x (..., features), or takes what was made of it already.

        Returns:
            (tokens, padded) in the rotated basis. Without a code the values of bfloat16 tokens may be bfloat16 too.
        """
        coded: Rounded = self.once(x, None, self.code_tokens)
        return coded

    def once(self, x: Tensor, key: Hashable, make: Callable[[Tensor], Any]) -> Any:
        """make(x as (tokens, features)), called once for each key while x stays as it is.

        The result is shared with whoever asks next: it must not be changed in place.
        """
        last: _Made | None = getattr(self._of_thread, "last", None)
        if last is None or last.source() is not x or _changed(x, last.results[_STATE]):
            last = self._of_thread.last = _remember(x)
        if key not in last.results:
            last.results[key] = make(x.reshape(-1, self.features))
        return last.results[key]

    def floats(self, x: Tensor) -> Tensor:
        """What x (..., features) becomes, as floats: (tokens, padded) float32, rotated and rounded to the code.

        Nothing is remembered. Without a code float32 is what the rotation gives, also for tokens in 16 bits.
        """
        flat = x.detach().reshape(-1, self.features)
        if self.code is None and self.reflections is None:
            return self._rotated(flat.float())
        return self.code_tokens(flat).dequantized().contiguous()

    def int16(self, x: Tensor, kernels: Kernels) -> tuple[Tensor, Tensor]:
        """What `to_int16` makes of x (..., features), without a code, or what it made of it already."""

        def make(flat: Tensor) -> tuple[Tensor, Tensor]:
            if self.reflections is not None:  # which no kernel knows
                return kernels.to_int16(self.rotate(flat.detach()), self.padded, None)
            if self.parts > 1:
                return kernels.to_int16(self._rotated(flat.detach().float()), self.padded, None)
            return kernels.to_int16(flat.detach(), self.padded, self.seed)

        tokens, scale = self.once(x, "int16", make)
        return tokens, scale

    def code_tokens(self, x: Tensor) -> Rounded:
        """Rotates and codes tokens (tokens, features), without a gradient: rounding has none."""
        x = x.detach()
        if self.reflections is not None:  # which no kernel knows
            return self.quantize(self.rotate(x))
        if self.code is None:
            return Rounded(self._rotated(x), None)
        if self.parts > 1:
            return self.code.round_parts(x, self.seed, self.parts)
        return self.code.round_tokens(x, self.padded, self.seed)

    def _rotated(self, x: Tensor) -> Tensor:
        """Tokens (tokens, features) by a kernel: (tokens, padded) float32, or bfloat16 of bfloat16."""
        if isinstance(self.seed, ScaledSeed) and self.parts > 1:  # each part has factors of its own
            return self.rotation.apply(x)
        if self.parts > 1:
            x = x.reshape(-1, self.part)
        return for_device(x.device).rotate_tokens(x, self.part, self.seed).view(-1, self.padded)

    def rotate(self, x: Tensor) -> Tensor:
        """(..., features) to (tokens, padded) float32."""
        flat = F.pad(x.reshape(-1, self.features), (0, self.padded - self.features))
        return self.rotation.apply(flat)

    def unrotate(self, y: Tensor) -> Tensor:
        """The inverse of `rotate`: (tokens, padded) to (tokens, features) float32."""
        return self.rotation.inverse(y)[:, : self.features]

    def unrotate_rows(self, rows: Tensor) -> Tensor:
        """Rows of a weight (rows, padded) that meet rotated tokens as (rows, features) float32 that meet tokens."""
        return self._rotation(dual(self.seed)).inverse(rows)[:, : self.features]

    @property
    def rotation(self) -> AnyRotation:
        """The rotation of padded tokens."""
        return self._rotation(self.seed)

    def _rotation(self, seed: Seed | None) -> AnyRotation:
        first = parted_rotation(self.padded, seed, self.parts)
        return first if self.reflections is None else Reflected(first, self.reflections)

    def quantize(self, rotated: Tensor) -> Rounded:
        """Rounds rotated tokens (tokens, padded) to the activation code."""
        if self.code is None:
            return Rounded(rotated, None)
        if self.parts > 1:
            return self.code.round_parts(rotated.detach(), None, self.parts)
        return self.code.round(rotated.detach())

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("features", "seed", "code", "reflections", "parts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class _Made(NamedTuple):
    """What one thread made of one tensor.

    Attributes:
        source: the tensor.
        results: what was made by key, and under _STATE the tensor's state; emptied when the tensor goes. Whoever reads
            it holds the tensor, so that it is never emptied under a reader.
    """

    source: "weakref.ref[Tensor]"
    results: dict[Hashable, Any]


_STATE = object()


def _remember(x: Tensor) -> _Made:
    results: dict[Hashable, Any] = {_STATE: _state_of(x)}
    return _Made(weakref.ref(x, lambda _: results.clear()), results)


def _changed(x: Tensor, state: Tensor | int) -> bool:
    """Whether x was changed in place since it had this state."""
    return not torch.equal(state, x) if isinstance(state, Tensor) else state != _state_of(x)


def padded_size(features: int) -> int:
    """The next multiple of 8."""
    return -(-features // BLOCK) * BLOCK


def _state_of(x: Tensor) -> Tensor | int:
    """What differs after x was changed in place: its version; in inference mode, which has none, its contents."""
    return for_device(x.device).fingerprint(x) if x.is_inference() else x._version
