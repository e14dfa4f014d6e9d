"""Packed keys and values in the pages of vLLM's cache, where its version has an adapter here.

vLLM has no lasting interface for caches from outside, so each supported release has a file of its own. Elsewhere
keys and values stay in 16 bits, and a warning says so once. In reading order:

`batch` sorts the tokens of a step by request.
`paged` writes packed keys and values to pages and attends to them; it knows nothing of vLLM.
`obstacles` says why a layer cannot have that.
`v0_32` tells vLLM 0.32.
"""

from importlib import import_module
from typing import Any

from ....modules.unrounded import ALL_ROUNDED, Unrounded

ADAPTERS = {"0.32": "v0_32"}  # the first two numbers of vLLM's version, and a module of this package
UNPACKED = (
    "%s: keys and values stay in 16 bits, so the cache holds fewer tokens and answers may differ from those of "
    "transformers; to have the same in both, quantize with --kv-bits 16"
)


def attention_method(config: Any, layer: Any, prefix: str) -> Any:
    """What packs the cache of an attention layer, for `QuantizationConfig.get_quant_method`.

    Args:
        config: the `CheckpointConfig` of the model.
        layer: an attention layer of vLLM.
        prefix: its name.

    Returns:
        a BaseKVCacheMethod of vLLM; None where keys and values stay in 16 bits.
    """
    layout = config.state.layout
    if not any(codes is not None for codes in layout.cache):
        return None
    import vllm
    from vllm.logger import init_logger
    from vllm.platforms import current_platform

    why = unusable(vllm.__version__, current_platform.device_type, layout.unrounded)
    if why is not None:
        init_logger("vllm.nestquant").warning_once(UNPACKED, why)
        return None
    adapter = import_module(f"{__name__}.{_adapter(vllm.__version__)}")
    return adapter.PackedCacheMethod(config, layout.cache, layout.rotation_seed)


def unusable(version: str, device: str, unrounded: Unrounded = ALL_ROUNDED) -> str | None:
    """Why a version of vLLM cannot have a packed cache on a kind of device, in words; None where it can."""
    if unrounded:
        return (
            "the checkpoint has keys and values that are seen unrounded (--kv-window, --kv-sinks), its pages have none"
        )
    if _adapter(version) is None:
        return f"this nestquant packs the cache of vLLM {', '.join(ADAPTERS)}, and this is vLLM {version}"
    if device != "cpu":
        return f"there is no attention kernel for packed pages on {device}"
    return None


def _adapter(version: str) -> str | None:
    return ADAPTERS.get(".".join(version.split(".")[:2]))
