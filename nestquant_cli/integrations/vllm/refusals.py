"""Errors that several files of the plugin raise."""

from collections.abc import Iterable

from ...base.errors import NestQuantError, first_line
from .pieces import Piece


def not_loaded(what: str) -> NestQuantError:
    """The error that names what vLLM's model passed over, or what the files do not have."""
    return NestQuantError(
        f"vLLM's model has not loaded {what}",
        "the checkpoint cannot be served",
        "look for what is missing with `nestquant verify`, or use the checkpoint in transformers",
    )


def not_served(cause: str) -> NestQuantError:
    """The error for experts that are not computed in vLLM."""
    return NestQuantError(cause, "experts of this kind are not served in vLLM", "use the checkpoint in transformers")


def refuse_lost_biases(pieces: Iterable[Piece], bias: object) -> None:
    """Raises NestQuantError for a layer without bias whose matrices have one in the checkpoint.

    vLLM passes over the tensor of a bias that a layer has no place for, and its answers are then wrong.

    Args:
        pieces: the matrices of the layer.
        bias: that of the layer; None where it has none.
    """
    lost = [piece.place.name for piece in pieces if piece.linear.bias and bias is None]
    if lost:
        raise NestQuantError(
            f"{lost[0]} has a bias, and its layer in vLLM has none",
            "answers would not be those of the checkpoint",
            "use it in transformers",
        )


class NotFollowedError(NestQuantError):
    """An error of vLLM's own while it builds or loads a model with coded matrices, in one line."""


def not_followed(place: str, error: BaseException) -> NestQuantError:
    """The error that says where vLLM stopped.

    Args:
        place: the layer that was built or the tensor that was loaded last.
        error: what vLLM raised.
    """
    said = first_line(error)
    said = said if said == type(error).__name__ else f"{type(error).__name__}: {said}"
    return NotFollowedError(
        f"vLLM stopped at {place or 'the start'}: {said}",
        "the checkpoint was not loaded",
        "try the original model: if vLLM runs that, its class cannot have coded matrices; use the checkpoint in "
        "transformers",
    )
