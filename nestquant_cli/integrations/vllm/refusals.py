"""Errors that several files of the plugin raise."""

from ...base.errors import NestQuantError, first_line


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
