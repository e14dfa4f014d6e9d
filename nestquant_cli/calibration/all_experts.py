"""Sends every token to every expert for statistics, while the layer goes on as its router decides.

An experts module that is called with hidden states, the router's choice and its weights is run once more for each
expert, with all tokens and that expert as their only choice. What its Linears are given then is measured. What they are
given in the call of the router is not, so that no token counts twice. This takes as many products as there are experts
for each token, instead of the few that the router chooses.
"""

import inspect
import threading
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ..base.errors import NestQuantError
from ..models.as_linears import experts_of
from ..models.expert_families import expert_families

_thread = threading.local()  # `routed`: whether the call of experts in progress is the router's


def is_routed_call() -> bool:
    """Whether this thread is in a call of experts that is not measured, since all tokens were measured before it."""
    return getattr(_thread, "routed", False)


@contextmanager
def every_token(layer: nn.Module, experts: Collection[int] | None = None) -> Iterator[None]:
    """Within it the Linears of a layer's experts are given every token of a call before those of the router.

    Args:
        layer: decoder layer with its matrices made Linears.
        experts: numbers of the experts; None for all of them.
    """
    with ExitStack() as hooks:
        for name, count in _modules(layer).items():
            chosen = [number for number in range(count) if experts is None or number in experts]
            module = layer.get_submodule(name)
            hooks.enter_context(module.register_forward_pre_hook(partial(_before, chosen), with_kwargs=True))
            hooks.enter_context(module.register_forward_hook(_after, always_call=True))
        yield


def refuse_undriven(layers: nn.ModuleList, prefix: str) -> None:
    """Raises NestQuantError for decoder layers without experts, or with some that cannot be sent every token.

    Args:
        layers: the decoder layers.
        prefix: name of the stack.
    """
    any_experts = False
    for index, layer in enumerate(layers):
        driven = _modules(layer)
        any_experts |= bool(driven)
        for family in expert_families(layer):
            if family[0].rpartition(".")[0].rpartition(".")[0] not in driven:
                raise NestQuantError(
                    f"{prefix}.{index}.{family[0]} cannot be given every token: the experts are not called with "
                    "hidden states, the router's choice and its weights",
                    "nothing was quantized",
                    "leave --all-experts out, and raise --samples if experts see few tokens",
                )
    if not any_experts:
        raise NestQuantError("the model has no experts", "nothing was quantized", "leave --all-experts out")


def _modules(layer: nn.Module) -> dict[str, int]:
    """The experts modules of a layer that can be sent every token, by name, with their numbers of experts."""
    found: dict[str, int] = {}
    for name, matrices in experts_of(layer).items():
        owner = name.rpartition(".")[0]
        required = inspect.signature(layer.get_submodule(owner).forward).parameters.values()
        if sum(each.kind is each.POSITIONAL_OR_KEYWORD for each in required) == 3:
            found[owner] = max(found.get(owner, 0), len(matrices))
    return found


def _before(experts: list[int], module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    hidden, choice, weights = inspect.signature(module.forward).bind(*args, **kwargs).arguments.values()
    _thread.routed = False
    for expert in experts:
        module.forward(hidden, torch.full_like(choice[:, :1], expert), torch.ones_like(weights[:, :1]))
    _thread.routed = True


def _after(*_: Any) -> None:
    _thread.routed = False
