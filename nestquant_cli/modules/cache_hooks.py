"""Gives the attention of decoder layers a cache where it is given none."""

import inspect
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache

_CACHE_ARGUMENTS = ("past_key_values", "layer_past")  # names in transformers of what an attention module updates


def give_cache(layers: Iterable[nn.Module], cache: Cache) -> list[RemovableHandle]:
    """Makes the attention of decoder layers use `cache` wherever it is given none.

    Gradient checkpointing takes caches away from layers, so it cannot be given to those.

    Returns:
        handles, which undo it; none where no layer has a module that takes a cache.
    """
    return [
        module.register_forward_pre_hook(partial(_with_cache, cache, place, name), with_kwargs=True)
        for layer in layers
        for module, place, name in _attentions(layer)
    ]


def _attentions(layer: nn.Module) -> list[tuple[nn.Module, int, str]]:
    """The modules of a layer that it gives its cache, which may hand it on: where and under which name."""
    found = []
    for module in layer.modules():
        names = list(inspect.signature(module.forward).parameters)
        found += [(module, names.index(name), name) for name in _CACHE_ARGUMENTS if name in names]
    found = [each for each in found if each[0] is not layer] or found
    inner = {id(module) for outer, *_ in found for module in outer.modules() if module is not outer}
    return [each for each in found if id(each[0]) not in inner]


def _with_cache(
    cache: Cache, place: int, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    behind = getattr(cache, "behind", None)
    cache = cache if behind is None else behind(kwargs.get("attention_mask"))
    if len(args) > place:
        args = args if args[place] is not None else (*args[:place], cache, *args[place + 1 :])
    elif kwargs.get(name) is None:
        kwargs[name] = cache
    return args, kwargs
