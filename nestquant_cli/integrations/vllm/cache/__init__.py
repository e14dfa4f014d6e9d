"""Packed keys and values in the pages of vLLM's cache, where its version has an adapter here."""

import logging
from typing import Any

logger = logging.getLogger("nestquant")


def register() -> None:
    """Registers with vLLM what a packed cache needs, in each of its processes."""


def attention_method(config: Any, layer: Any, prefix: str) -> Any:
    """What vLLM is to know of the cache of an attention layer.

    Args:
        config: the `VllmConfig` of the model.
        layer: an attention layer of vLLM.
        prefix: its name.

    Returns:
        a BaseKVCacheMethod of vLLM; None where keys and values stay in 16 bits.
    """
    if config.state.layout.cache and not config.state.warned:
        config.state.warned = True
        logger.warning("the checkpoint's packed keys and values are not used: the cache has them in 16 bits")
    return None
