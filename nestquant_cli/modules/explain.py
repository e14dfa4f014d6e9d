"""Says in words which way multiplies a quantized weight, for `nestquant inspect --kernels`."""

import torch

from ..codecs.registry import codec_of
from ..codecs.weights import WeightCode
from ..e8.code import BLOCK
from ..kernels import for_device
from ..kernels.limits import UNLIMITED
from .inputs import InputQuantizer
from .multiply import WeightForm, choose, token_form


def describe(
    code: WeightCode | None,
    resident: str,
    device: torch.device,
    dtype: torch.dtype,
    source: InputQuantizer | None = None,
) -> dict[str, str]:
    """Which way multiplies, for each range of the number of tokens.

    Args:
        code: code of the weight; None where it stays in 16 bits.
        resident: "packed" or "int8", the form in memory that is asked for.
        device: device of the model.
        dtype: dtype of the model's activations.
        source: the quantizer of the Linear's input; without one, an input that is not rounded, with the Hadamard
            rotation of an order that kernels know.

    Returns:
        a phrase that says what is multiplied, by range: "1 token", "2 to 64 tokens", "5 tokens and more" or "any
        number of tokens".

    Example:
        >>> describe(NestedCode(13, (3, 4, 5, 6, 9), 32), "int8", torch.device("cpu"), torch.bfloat16)
        {'up to 64 tokens': 'the int8 rows of all Linears with this input …', '65 to 1024 tokens': 'int8 rows and …', …}
    """
    weight = WeightForm("16 bit") if code is None else codec_of(code).linear.form_of(code, resident)
    source = source or InputQuantizer(BLOCK, 0, None)
    rounded_on = device if source.code is None else torch.device("cpu")  # the device itself need not be there
    steps = choose(weight, token_form(source, dtype, rounded_on), for_device(device).limits)
    lines, first = {}, 1
    for most, way in steps:
        if most >= first:
            lines[_range(first, most)] = _phrase(way.__doc__ or way.__name__)
            first = most + 1
    return lines


def _range(first: int, last: int) -> str:
    if last == UNLIMITED:
        return "any number of tokens" if first == 1 else f"{first} tokens and more"
    if first == 1:
        return "1 token" if last == 1 else f"up to {last} tokens"
    return f"{first} to {last} tokens"


def _phrase(docstring: str) -> str:
    """The first line of a docstring within a sentence."""
    line = docstring.partition("\n")[0].rstrip(".")
    return line[0].lower() + line[1:]
