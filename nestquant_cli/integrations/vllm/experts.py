"""Mixtures of experts."""

from typing import Any

from ...base.errors import NestQuantError


def expert_method(config: Any, layer: Any, prefix: str) -> Any:
    """The method of a layer of experts (RoutedExperts) of vLLM.

    Args:
        config: the `VllmConfig` of the model.
        layer: the layer.
        prefix: its name.

    Returns:
        a FusedMoEMethodBase of vLLM; None for experts in 16 bits.

    Raises:
        NestQuantError: the checkpoint's experts are coded.
    """
    if not config.state.names.below(prefix):
        return None
    raise NestQuantError(
        f"the experts of {prefix} are coded, for which vLLM has no kernel here",
        "the checkpoint was not loaded",
        "use it in transformers",
    )
