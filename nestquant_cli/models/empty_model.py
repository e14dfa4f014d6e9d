"""A model without memory for its weights, set up as transformers sets it up while it loads them."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..kernels.dense import use_float32_products
from .auto_class import auto_class
from .shards import Entry
from .size_limits import describing
from .tensor_reader import TensorReader

logger = logging.getLogger("nestquant")


def empty_model(config: Any, dtype: torch.dtype | None) -> PreTrainedModel:
    """A model with its parameters on the meta device; buffers, which no file has, are computed as usual.

    Args:
        config: configuration of the model.
        dtype: dtype of its weights; tensors that its class keeps in float32 have that dtype.

    Raises:
        NestQuantError: the configuration describes no usable model.
    """
    from accelerate import init_empty_weights

    with describing(), init_empty_weights(include_buffers=False):
        model: PreTrainedModel = auto_class(config).from_config(config, dtype=dtype, trust_remote_code=False)
    use_float32_products(model)
    _compute_buffers(model)
    _keep_float32(model, dtype)
    return model


def _compute_buffers(model: PreTrainedModel) -> None:
    """Computes buffers that no file has in float32, as transformers does after loading, not in the model's dtype."""
    modules: list[Any] = list(model.modules())
    initialized = [getattr(module, "_is_hf_initialized", False) for module in modules]
    for module in modules:
        module._is_hf_initialized = not module._non_persistent_buffers_set
    model.initialize_weights()
    for module, was in zip(modules, initialized, strict=True):
        module._is_hf_initialized = was


def _keep_float32(model: PreTrainedModel, dtype: torch.dtype | None) -> None:
    """Gives tensors that the model's class keeps in float32 that dtype, as transformers does while it loads them."""
    from transformers.core_model_loading import build_glob_alternation

    plan: dict[str, torch.dtype] = model._get_dtype_plan(dtype or model.dtype)
    if not plan:
        return
    alternation, patterns, _ = build_glob_alternation(list(plan))
    for name, tensor in model.state_dict().items():
        match = alternation.search(name)
        if match is not None and match.lastgroup is not None and tensor.is_floating_point():
            owner, _, leaf = name.rpartition(".")
            module, kept = model.get_submodule(owner), tensor.to(plan[patterns[match.lastgroup]])
            if leaf in module._buffers:
                module._buffers[leaf] = kept
            else:
                setattr(module, leaf, nn.Parameter(kept, requires_grad=False))


def first_dtype(stored: dict[str, tuple[Path, Entry]]) -> torch.dtype | None:
    """The dtype of the first floating-point tensor of the files; float32 where there is none."""
    names = (entry.dtype for _, entry in stored.values() if "float" in entry.dtype)
    return getattr(torch, next(names, "float32"))


def keep_untied(model: PreTrainedModel, reader: TensorReader) -> None:
    """Unties a parameter that the configuration ties where its files hold other values for it.

    transformers does the same while it loads a whole model.

    Args:
        model: model on the meta device.
        reader: reads the model's tensors.
    """
    for name, shared in list(model.all_tied_weights_keys.items()):
        if name not in reader or shared not in reader:
            continue
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if not reader.same(name, shared, getattr(module, leaf).dtype):
            logger.warning("%s differs from %s, which config.json ties it to; it is kept as it is", name, shared)
            untied = nn.Parameter(torch.empty_like(getattr(module, leaf)), requires_grad=False)
            setattr(module, leaf, untied)
            del model.all_tied_weights_keys[name]
