"""Errors that several files of the plugin raise."""

from ...base.errors import NestQuantError


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
