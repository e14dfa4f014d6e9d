"""The language model inside a model: what belongs to it, and what runs it on text alone.

A model of images with text has towers beside its language model. Each part has a configuration of its own, and a module
keeps the one that it was built from: by that the parts are told apart.
"""

import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..base.errors import NestQuantError


def text_stacks(model: PreTrainedModel) -> Iterator[tuple[str, nn.ModuleList]]:
    """Name and module of each nn.ModuleList that is the language model's and no tower's.

    Those whose modules keep the very configuration of the text come first, then those with one of its kind.
    """
    text = model.config.get_text_config(decoder=True)
    stacks = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    yield from ((name, module) for name, module in stacks if _config_of(model, name) is text)
    kinds = {type(text), type(model.config)}
    for name, module in stacks:
        config = _config_of(model, name)
        if config is not text and type(config) in kinds:
            yield name, module


def runner(model: PreTrainedModel, stack: str) -> tuple[str, nn.Module]:
    """Name and module of what computes the hidden states of a text from its token ids, without the output head.

    It is the model's base, which gives positions and masks to the language model inside it; of a model that has none,
    the smallest module around the decoder layers that takes token ids.

    Args:
        model: the whole model.
        stack: name of its decoder layers.
    """
    base = model.base_model
    if base is not model:
        return model.base_model_prefix, base
    for name in _upwards(stack.rpartition(".")[0]):
        module = model.get_submodule(name)
        if "input_ids" in inspect.signature(module.forward).parameters:
            return name, module
    return "", model


def tower_stacks(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the stacks of layers outside the language model, where it is a part. A text passes none of them."""
    text = model.config.get_text_config(decoder=True)
    if text is model.config:
        return ()
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and type(_config_of(model, name)) not in (type(text), type(model.config))
    )


def refuse_without_text(model: PreTrainedModel, consequence: str, remedy: str) -> None:
    """Raises NestQuantError for a model that cannot be run on a text alone."""
    parameters = inspect.signature(model.forward).parameters
    kind = type(model).__name__
    if "input_ids" not in parameters:
        raise NestQuantError(f"{kind} takes no tokens of a text in its forward", consequence, remedy)
    for name, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if needed and name != "input_ids":
            raise NestQuantError(f"{kind} reads no text without {name}", consequence, remedy)


def _upwards(name: str) -> Iterator[str]:
    """The name of a module, then that of the module around it, and so on to the whole model's, which is empty."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


def _config_of(model: nn.Module, name: str) -> Any:
    """The configuration that the module of this name was built from: its own, else that of the next module around."""
    for outer in _upwards(name):
        config = getattr(model.get_submodule(outer), "config", None)
        if isinstance(config, PretrainedConfig):
            return config
    return None
