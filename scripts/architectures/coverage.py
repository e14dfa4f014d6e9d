"""Which matrices of the decoder layers were quantized, which stayed, and which no forward called."""

import re
from collections import Counter
from collections.abc import Collection
from functools import partial
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from . import measures
from .text import token_ids


def structure(model: Any) -> dict[str, Any]:
    """What kinds of parts a plain model has, by its modules, and the layers of its cache."""
    parts = [
        ("experts", any(_has_experts(module) for module in model.modules())),
        ("Conv1D", any(isinstance(module, Conv1D) for module in model.modules())),
    ]
    return {"parts": [name for name, has in parts if has], "cache": cache_kinds(model), "never_called": idle(model)}


def idle(model: nn.Module) -> list[str]:
    """Kinds of Linears that a forward of a text does not reach, nor the module they belong to: cross-attention."""
    modules = {name: module for name, module in model.named_modules() if not isinstance(module, nn.ModuleList)}
    called: set[str] = set()
    hooks = [m.register_forward_pre_hook(partial(_mark, called, {name})) for name, m in modules.items()]
    measures.logits(model, token_ids(48))
    for hook in hooks:
        hook.remove()
    linears = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
    owners = {name: name.rpartition(".")[0] for name in linears - called}
    return sorted({_kind(name) for name, owner in owners.items() if owner in modules and owner not in called})


def cache_kinds(model: Any) -> list[str]:
    """Classes of the cache's layers after a short prompt; empty where the model keeps none of transformers' caches."""
    try:
        found = measures.forward(model, token_ids(4), use_cache=True)
    except Exception:  # some models run only without a cache
        return []
    cache = getattr(found, "past_key_values", None)
    layers = getattr(cache, "layers", None) or getattr(getattr(cache, "self_attention_cache", None), "layers", [])
    return sorted({type(layer).__name__ for layer in layers})


def coverage(packed: Any, original: Any) -> dict[str, Any]:
    """Counts of weight entries in the decoder layers: quantized, left in 16 bits by name, and all of the original.

    A matrix that several places share counts at each: quantized, each place has its own.
    """
    from nestquant_cli.modules.linear import QuantizedLinear

    inside = {
        name: module
        for name, module in packed.named_modules(remove_duplicate=False)
        if isinstance(module, QuantizedLinear)
    }
    stacks = _stacks(list(inside))
    left: Counter[str] = Counter()
    for name, parameter in packed.named_parameters(remove_duplicate=False):
        if parameter.dim() >= 2 and _within(name, stacks) and name.rpartition(".")[0] not in inside:
            left[_kind(name)] += parameter.numel()
    whole = sum(
        p.numel() for n, p in original.named_parameters(remove_duplicate=False) if p.dim() >= 2 and _within(n, stacks)
    )
    entries = sum(module.in_features * module.out_features for module in inside.values())
    return {
        "stacks": sorted(stacks),
        "entries": entries,
        "left": dict(left.most_common()),
        "original_entries": whole,
        "never_called": _never_called(packed, inside),
    }


def _stacks(names: list[str]) -> set[str]:
    """The outermost lists of modules that hold the modules of these names, e.g. {"model.layers"}."""
    return {match.group(1) for name in names if (match := re.match(r"(.*?)\.\d+(\.|$)", name))}


def _within(name: str, stacks: set[str]) -> bool:
    return any(name.startswith(f"{stack}.") for stack in stacks)


def _kind(name: str) -> str:
    """The name of a parameter inside its layer, without the numbers of experts and heads."""
    return re.sub(r"\.\d+(?=\.|$)", "", re.sub(r"^.*?\.\d+\.", "", name))


def _has_experts(module: nn.Module) -> bool:
    """Whether a module has one matrix for each expert: a parameter of three dimensions, or a list of modules."""
    three = any(parameter.dim() == 3 for parameter in module.parameters(recurse=False))
    return (three and "expert" in type(module).__name__.lower()) or any(
        isinstance(child, nn.ModuleList) and "expert" in name for name, child in module.named_children()
    )


def _mark(called: set[str], names: set[str], *_: Any) -> None:
    called.update(names)


def _never_called(model: Any, inside: Collection[str]) -> list[str]:
    """Kinds of quantized matrices that a forward of 48 tokens reaches in no layer.

    An expert counts as called when the module of all experts is: kernels may compute many experts at once, and an
    expert that no token chose is idle rightly.
    """
    watched: dict[str, set[str]] = {}
    for name in inside:
        stem = re.sub(r"(\.[^.]+)?\.\d+(\..*)?$", "", name) if re.search(r"expert.*\.\d+", name) else name
        watched.setdefault(stem, set()).add(name)
    called: set[str] = set()
    hooks = []
    for stem, names in watched.items():
        hooks.append(model.get_submodule(stem).register_forward_pre_hook(partial(_mark, called, names)))
    measures.logits(model, token_ids(48))
    for hook in hooks:
        hook.remove()
    return sorted(set(inside) - called)
