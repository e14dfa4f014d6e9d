"""Which way multiplies a quantized weight: the one place where that is decided. `ways` has the ways themselves.

`choose` decides from the form of the weight in memory, what the tokens are when they come to the product, and the
limits of the device's kernels (`kernels.limits`). It does so once for a form, a dtype and a device; what is left for
each call is the number of tokens.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels import Kernels, for_device
from ..kernels.limits import UNLIMITED, Limits
from ..rotation.seeds import plain
from . import ways
from .inputs import InputQuantizer
from .ways import Way

Steps = tuple[tuple[int, Way], ...]  # ways, each with the most tokens that it is taken for; the last has no limit


class WeightForm(NamedTuple):
    """What the choice depends on of a weight.

    Attributes:
        resident: the form in memory: "16 bit" where the weight is not coded, "packed", or "int8".
        integers: whether a row is integers with one scale.
        int8: whether they fit int8.
        nested: whether the packed words are those of a nested code, which kernels read.
    """

    resident: str
    integers: bool = False
    int8: bool = False
    nested: bool = False


class TokenForm(NamedTuple):
    """What the choice depends on of tokens as they come to the product.

    Attributes:
        dtype: dtype of the Linear's input.
        integers: dtype of the integers that tokens are rounded to, with a scale each; None for floats.
        fused: whether they are not rounded and a kernel rotates them in one pass, bfloat16 to bfloat16.
        parted: whether the scale is of a part of a token.
    """

    dtype: torch.dtype
    integers: torch.dtype | None
    fused: bool
    parted: bool = False


def choose(weight: WeightForm, tokens: TokenForm, limits: Limits) -> Steps:
    """The ways to multiply, each with the number of tokens up to which it is taken, the least first.

    So for one bfloat16 token and a weight of 4 bits: packed, `words_by_few` on a CPU and on a GPU; as int8,
    `joined_rows` on a CPU, and `float_rows` on a GPU, where no kernel reads int8 rows.
    """
    if weight.resident == "16 bit":
        return ((UNLIMITED, ways.kept_weight),)
    if not weight.integers:
        return ((UNLIMITED, ways.float32_values),)

    steps: list[tuple[int, Way]] = []
    both_int8 = weight.int8 and tokens.integers == torch.int8
    bfloat16 = weight.int8 and tokens.dtype == torch.bfloat16

    # Kernels for few tokens, where the weight's bytes are what a product waits for.
    if weight.resident == "int8" and tokens.fused:
        steps.append((max(limits.joined_tokens, limits.rounded_tokens if bfloat16 else 0), ways.joined_rows))
    if both_int8 and tokens.parted:
        return ((UNLIMITED, ways.integer_sums_of_parts),)
    if weight.resident == "packed" and weight.nested and both_int8:
        steps.append((limits.integer_tokens, ways.words_by_integers))
    elif weight.resident == "packed" and weight.nested:
        few = limits.dot_tokens if tokens.integers is None else limits.rounded_dot_tokens
        steps.append((few, ways.words_by_few))
        if bfloat16:
            steps.append((limits.fused_tokens, ways.words_by_many))

    # Products of integer rows for any number of tokens; packed words are decoded to them first.
    if bfloat16 and tokens.integers is None:
        steps.append((limits.int16_tokens, ways.int16_rows))
    if both_int8:
        steps.append((UNLIMITED, ways.integer_sums))
    elif bfloat16 and tokens.fused:
        steps.append((UNLIMITED, ways.bfloat16_rows))
    else:
        steps.append((UNLIMITED, ways.float_rows))
    return tuple((most, way) for most, way in steps if most > 0)  # a limit of 0: the device has no such kernel


class Choice(NamedTuple):
    """What was chosen for a Linear's form, a dtype and a device."""

    kernels: Kernels
    steps: Steps

    def way(self, tokens: int) -> Way:
        """The way for a number of tokens."""
        return next(way for most, way in self.steps if tokens <= most)


def choice_for(weight: WeightForm, source: InputQuantizer, dtype: torch.dtype, device: torch.device) -> Choice:
    """The choice for a weight, its input quantizer, and inputs of a dtype on a device."""
    kernels = for_device(device)
    return Choice(kernels, choose(weight, token_form(source, dtype, device), kernels.limits))


def token_form(source: InputQuantizer, dtype: torch.dtype, device: torch.device) -> TokenForm:
    """What a quantizer makes of inputs: found by rounding one token of zeros, if it rounds them."""
    if source.code is None:
        seed = plain(source.seed) if source.plain else None
        fused = seed is not None and for_device(device).rotates(source.part, seed)
        return TokenForm(dtype, None, fused)
    rounded = source.quantize(torch.zeros(1, source.padded, device=device))
    return TokenForm(dtype, None if rounded.scale is None else rounded.values.dtype, False, source.parts > 1)


def multiply(layer: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., features) times the weight of a QuantizedLinear: (tokens, rows) in x's dtype or in float32."""
    choice: Choice | None = layer.choices.get((x.dtype, x.device))
    if choice is None:
        choice = choice_for(layer.form(), layer.source, x.dtype, x.device)
        layer.choices[x.dtype, x.device] = choice
    tokens = x.numel() // layer.in_features
    for most, way in choice.steps:
        if tokens <= most:
            return way(layer, x, bias, choice.kernels)
    raise AssertionError("the last way has no limit")
