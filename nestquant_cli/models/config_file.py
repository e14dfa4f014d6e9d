"""A model's configuration and generation settings as they are written into a checkpoint."""

import math
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import GenerationConfig, PreTrainedModel

from ..base.errors import NestQuantError
from .weight_set import CHOICE

FLOAT = "__float__"  # the key under which transformers writes numbers that JSON does not have
_NOT_OURS = ("auto_map", "quantization_config", "_name_or_path", "_attn_implementation_autoset", CHOICE)


def model_config(model: PreTrainedModel) -> dict[str, Any]:
    """config.json of the model as transformers would write it, without the traces of how it was loaded.

    Raises:
        NestQuantError: a value that JSON cannot hold.
    """
    config = model.config.to_diff_dict()
    for key in _NOT_OURS:
        config.pop(key, None)
    if model.get_expanded_tied_weights_keys() and not model.all_tied_weights_keys:
        # the model's files have a head that differs from its embeddings; parts say it for the whole, too
        for part in (config, *(value for value in config.values() if isinstance(value, dict))):
            if part is config or "tie_word_embeddings" in part:
                part["tie_word_embeddings"] = False
    config |= {
        "architectures": [type(model).__name__],
        "dtype": str(model.dtype).removeprefix("torch."),
        "transformers_version": transformers.__version__,
    }
    return {key: json_ready(value, f"{key} of config.json") for key, value in config.items()}


def generation_settings(settings: GenerationConfig) -> dict[str, Any]:
    """generation_config.json, with the settings of published models that its own save_pretrained refuses.

    Raises:
        NestQuantError: a value that JSON cannot hold; transformers reads no other form of an infinite number here.
    """
    values = settings.to_diff_dict()
    written = {key: json_ready(value, f"{key} of generation_config.json") for key, value in values.items()}
    for key, value in written.items():
        if isinstance(value, dict) and FLOAT in value:
            raise _unwritable(f"{key} of generation_config.json is {value[FLOAT]}")
    return written


def json_ready(value: Any, place: str) -> Any:
    """The value in a form that JSON holds; numbers that JSON does not have as transformers writes and reads them.

    Args:
        value: containers, texts, numbers, and objects with a `to_dict`.
        place: what errors call the value.

    Raises:
        NestQuantError: JSON cannot hold the value.

    Example:
        >>> json_ready((0.0, math.inf), "time_step_limit of config.json")
        [0.0, {'__float__': 'Infinity'}]
    """
    if isinstance(value, Mapping):
        return {key: json_ready(item, place) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item, place) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {FLOAT: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if hasattr(value, "to_dict"):
        return json_ready(value.to_dict(), place)
    raise _unwritable(f"{place} is a {type(value).__name__}")


def _unwritable(what: str) -> NestQuantError:
    return NestQuantError(f"{what}, which JSON cannot hold", "nothing was quantized", "correct it in the model's file")
