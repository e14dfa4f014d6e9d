"""What a configuration asks for against what its files hold, before anything of that size is made.

A config.json may come from anyone. Its numbers become lists while transformers reads it, modules while a model is
built, and memory while its tensors are loaded; so each is looked at one step earlier.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..base.errors import NestQuantError, first_line
from .auto_class import auto_class
from .resolve import NOT_LOADED

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

_LONGEST = {"layer": 1 << 12, "label": 1 << 16}  # entries of a list that transformers makes, by a word in its name
_COMPUTED = 1 << 24  # entries that a model may compute for itself, however small its files are

Shapes = Mapping[str, tuple[int, ...]]


def check_counts(config: Mapping[str, Any]) -> None:
    """Raises ValueError where a parsed config.json asks for lists without end."""
    for name, value in config.items():
        if isinstance(value, dict) and name != "quantization_config":
            check_counts(value)
        for word, most in _LONGEST.items():
            if word in name and type(value) is int and value > most:
                raise ValueError(f"its {name} is {value}, more than {most}")


@contextmanager
def describing() -> Iterator[None]:
    """Turns whatever reading a configuration and building a model of it raises into a NestQuantError."""
    try:
        yield
    except NestQuantError:
        raise
    except ImportError as error:
        raise NestQuantError(
            f"a part of this model needs a package ({first_line(error)})", NOT_LOADED, "install the package it names"
        ) from error
    except Exception as error:  # transformers raises of every kind where a field of config.json is unusable
        raise NestQuantError(
            f"config.json describes no usable model ({first_line(error)})",
            NOT_LOADED,
            "fetch the model again, or use another",
        ) from error


def meta_model(config: "PretrainedConfig", dtype: "torch.dtype | None" = None) -> "PreTrainedModel":
    """A model whose parameters and buffers have shapes and no memory.

    Raises:
        NestQuantError: the configuration describes none.
    """
    import torch

    config = copy.deepcopy(config)  # building a model changes its configuration
    with describing(), torch.device("meta"):
        model: PreTrainedModel = auto_class(config).from_config(config, dtype=dtype, trust_remote_code=False)
    return model


def refuse_depth(config: "PretrainedConfig", most: int, what: str) -> None:
    """Raises NestQuantError unless a configuration has 1 to `most` decoder layers, where `what` are as many."""
    with describing():
        depth = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 1)
        if not 0 < depth <= most:
            raise ValueError(f"it has {depth} layers, {what} {most}")


def refuse_size(model: "PreTrainedModel", shapes: Shapes) -> None:
    """Raises NestQuantError where loading would take memory out of proportion to the files.

    Args:
        model: the model on the meta device.
        shapes: shapes of the tensors in its files.
    """
    tied = getattr(model, "all_tied_weights_keys", {})
    wanted = sum(tensor.numel() for name, tensor in model.named_parameters() if name not in tied)
    wanted += sum(tensor.numel() for tensor in model.buffers())
    held = sum(map(math.prod, shapes.values()))
    if wanted > 2 * held + _COMPUTED:
        with describing():
            raise ValueError(f"it asks for {wanted:,} numbers, its files have {held:,}")


def refuse_misfit(config: "PretrainedConfig", shapes: Shapes) -> None:
    """Raises NestQuantError where a plain model cannot be that of its files; nothing is allocated for it."""
    refuse_depth(config, len(shapes), "the tensors of its files are")
    refuse_size(meta_model(config), shapes)
