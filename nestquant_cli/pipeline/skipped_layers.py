"""The layers whose keys and values a recipe leaves in 16 bits."""

from ..base.errors import NestQuantError

_NOTHING = "nothing was quantized"


def skipped_layers(text: str | None, depth: int) -> frozenset[int]:
    """Numbers of the layers that `Recipe.kv_skip_layers` names.

    Args:
        text: numbers from 0 on, or from -1 on backwards, separated by commas; None for no layer.
        depth: number of layers of the model.

    Raises:
        NestQuantError: something else than numbers, a layer that the model does not have, or all layers.

    Example:
        >>> sorted(skipped_layers("0,-1", 30))
        [0, 29]
    """
    numbers = layer_numbers(text)
    for number in numbers:
        if not -depth <= number < depth:
            raise NestQuantError(
                f"kv_skip_layers names layer {number}, the model has {depth} layers",
                _NOTHING,
                f"use numbers from 0 to {depth - 1}, or from -1 to {-depth}",
            )
    skipped = frozenset(number % depth for number in numbers)
    if len(skipped) == depth:
        raise NestQuantError("kv_skip_layers names every layer", _NOTHING, "use kv_bits 16")
    return skipped


def layer_numbers(text: str | None) -> list[int]:
    """The numbers of a list such as "0,1,-1"; raises NestQuantError where it is none."""
    try:
        return [] if text is None else [int(word) for word in text.split(",")]
    except ValueError:
        raise NestQuantError(
            f"kv_skip_layers {text!r} is no list of layers",
            _NOTHING,
            "give numbers separated by commas, such as 0,1,-1",
        ) from None
