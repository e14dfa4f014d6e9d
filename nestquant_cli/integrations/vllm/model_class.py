"""What vLLM's class of a model says of its layers, besides `packed_modules_mapping`.

Some classes put the rows of q and k in another order as they load them, for their rotary embeddings. They know what to
rearrange by the names that tensors of 16-bit weights and of vLLM's own methods have. Those of coded matrices have
others, so their rows would stay in the order of transformers, and answers would be wrong: such models are refused.

Some classes say which matrices are one layer only by how tensors are renamed.
"""

import sys
from collections.abc import Iterator
from typing import Any

from ...base.errors import NestQuantError

REARRANGES = "permute_qk_weight_for_rotary"  # a method of such a class


def rearranges_rows(model_class: type) -> bool:
    """Whether a class of vLLM does that, or one that its module has for the text of images."""
    return any(hasattr(each, REARRANGES) for each in _classes(model_class))


def fused_layers(model_class: type) -> dict[str, list[str]]:
    """What each fused layer is made of, by the last part of its name, as tensors are renamed.

    Args:
        model_class: a class of vLLM; others of its module count, too.
    """
    found: dict[str, dict[Any, str]] = {}
    for each in _classes(model_class):
        stacked = getattr(getattr(each, "hf_to_vllm_mapper", None), "orig_to_new_stacked", {})
        for old, (new, shard) in stacked.items():
            if old.strip(".").isidentifier() and not isinstance(shard, list):
                found.setdefault(new.strip("."), {})[shard] = old.strip(".")
    return {
        name: [parts[shard] for shard in sorted(parts, key="qkv".find if "q" in parts else None)]
        for name, parts in found.items()
    }


def current_class() -> type | None:
    """The class of the model that is built now; None where none is."""
    from vllm.config import get_current_vllm_config_or_none
    from vllm.model_executor.model_loader.utils import get_model_cls

    config = get_current_vllm_config_or_none()
    if config is None or config.model_config is None:
        return None
    found: type = get_model_cls(config.model_config)
    return found


def refuse_rearranged_rows(model_class: type | None) -> None:
    """Raises NestQuantError for a model whose class rearranges rows."""
    if model_class is None or not rearranges_rows(model_class):
        return
    raise NestQuantError(
        "this model's class in vLLM rearranges rows of queries and keys as it loads them, and those of coded matrices "
        "have no place for that",
        "the checkpoint was not loaded",
        "use it in transformers",
    )


def _classes(model_class: type) -> Iterator[type]:
    yield model_class
    yield from (each for each in vars(sys.modules[model_class.__module__]).values() if isinstance(each, type))
