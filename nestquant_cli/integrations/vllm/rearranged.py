"""Models whose class in vLLM puts the rows of q and k in another order as it loads them, for its rotary embeddings.

It knows what to rearrange by the names that tensors of 16-bit weights and of vLLM's own methods have. Those of coded
matrices have others, so their rows would stay in the order of transformers, and answers would be wrong.
"""

import sys
from typing import Any

from ...base.errors import NestQuantError

REARRANGES = "permute_qk_weight_for_rotary"  # a method of such a class


def rearranges_rows(model_class: type) -> bool:
    """Whether a class of vLLM does that, or one that its module has for the text of images."""
    module = sys.modules[model_class.__module__]
    return any(isinstance(each, type) and hasattr(each, REARRANGES) for each in (model_class, *vars(module).values()))


def refuse_rearranged_rows(config: Any) -> None:
    """Raises NestQuantError for such a model.

    Args:
        config: the VllmConfig that is current while a model is built; None where none is.
    """
    from vllm.model_executor.model_loader.utils import get_model_cls

    if config is None or config.model_config is None or not rearranges_rows(get_model_cls(config.model_config)):
        return
    raise NestQuantError(
        "this model's class in vLLM rearranges rows of queries and keys as it loads them, and those of coded matrices "
        "have no place for that",
        "the checkpoint was not loaded",
        "use it in transformers",
    )
