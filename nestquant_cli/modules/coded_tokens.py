"""Products of a quantized weight with tokens that are coded already: of one input some tokens go to each expert."""

from typing import Any

import torch
from torch import Tensor

from ..codecs.vectors import Rounded
from ..kernels import Kernels, for_device
from .inputs import InputQuantizer
from .linear import QuantizedLinear
from .multiply import choice_for


class _Coded:
    """A QuantizedLinear as the ways take it, whose input was coded before.

    Attributes:
        layer: the Linear.
        coded: its tokens.
    """

    def __init__(self, layer: QuantizedLinear, coded: Rounded) -> None:
        self.layer, self.coded, self.source = layer, coded, _Source(layer.source, coded)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def joined_product(self, x: Tensor) -> Tensor:
        """The product with a few tokens."""
        layer, tokens = self.layer, self.coded.dequantized().contiguous()
        every = torch.arange(len(tokens))
        v, scale = [layer.stored("v")], [layer.stored("row_scale")]
        return for_device(x.device).experts_product(tokens, every, [len(tokens)], v, scale, x.dtype)


class _Source:
    """An InputQuantizer that gives what was coded before."""

    def __init__(self, source: InputQuantizer, coded: Rounded) -> None:
        self.padded, self.unrotate, self.coded = source.padded, source.unrotate, coded

    def __call__(self, x: Tensor) -> Rounded:
        return self.coded

    def int16(self, x: Tensor, kernels: Kernels) -> tuple[Tensor, Tensor]:
        return kernels.to_int16(self.coded.dequantized().float(), self.padded, None)


def coded_product(layer: QuantizedLinear, coded: Rounded, like: Tensor) -> Tensor:
    """The product of a Linear without bias with tokens that its input quantizer coded, without a gradient.

    Args:
        layer: the Linear.
        coded: (tokens, padded) as `layer.source` gives them.
        like: a tensor of the dtype and on the device of the tokens before.

    Returns:
        (tokens, out_features) in that dtype.
    """
    choice = layer.choices.get((like.dtype, like.device))
    if choice is None:
        choice = choice_for(layer.form(), layer.source, like.dtype, like.device)
        layer.choices[like.dtype, like.device] = choice
    weight: Any = _Coded(layer, coded)
    return choice.way(len(coded.values))(weight, like, None, choice.kernels).to(like.dtype)
