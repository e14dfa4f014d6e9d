"""Finds what is to be quantized in a decoder by its structure: the stack of layers and the matrices inside each.

No list of model names: a model is supported when its decoder layers form one nn.ModuleList and every large matrix in
them belongs to an nn.Linear, a Conv1D or to experts. Of a model of images with text they are those of the language
model inside it (`models.language_model`). What does not fit is refused by name, with the reason; which matrices are
small enough to stay as they are, `models.small_matrices` says.
"""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..base.errors import NestQuantError
from .as_linears import as_linears, experts_of, routers_of
from .expert_families import listed_routers
from .language_model import refuse_without_text, text_stacks
from .linear_kinds import is_plain

_REFUSED = "it was not quantized"
_REMEDY = "use a decoder-only language model; docs/models.md lists those that work"


@dataclass(frozen=True)
class Decoder:
    """The quantizable part of a model.

    Attributes:
        owner: the module whose forward runs the stack, e.g. `model`.
        owner_name: its name in the whole model; empty for the model itself.
        layers: the decoder layers in order.
        prefix: name of the stack, e.g. `model.layers`.
    """

    owner: nn.Module
    owner_name: str
    layers: nn.ModuleList
    prefix: str

    def layer_name(self, index: int) -> str:
        """Full name of layer `index`."""
        return f"{self.prefix}.{index}"


def find_decoder(model: PreTrainedModel) -> Decoder:
    """The stack of decoder layers.

    Raises:
        NestQuantError: no such stack, or the model is of a kind that is not supported.
    """
    refuse_unsupported(model)
    config = model.config.get_text_config(decoder=True)
    depth = getattr(config, "decoder_layers", None) or getattr(config, "num_hidden_layers", None)
    for name, module in text_stacks(model, depth):
        if _has_linear(module):
            owner_name = name.rpartition(".")[0]
            return Decoder(model.get_submodule(owner_name), owner_name, module, name)
    number = "" if depth is None else f"{depth} "
    raise NestQuantError(
        f"{_kind(model)} has no stack of {number}decoder layers with nn.Linear inside", _REFUSED, _REMEDY
    )


def open_decoder(model: PreTrainedModel) -> Decoder:
    """The stack of decoder layers, with all their matrices made nn.Linear in place (`models.as_linears`).

    The model's experts are then computed by the forward of their class, which calls these Linears.

    Raises:
        NestQuantError: no such stack, or the model is of a kind that is not supported.
    """
    decoder = find_decoder(model)
    as_linears(decoder.layers, model.config.get_text_config(decoder=True).hidden_size)
    if any(experts_of(layer) for layer in decoder.layers):
        model.set_experts_implementation("eager")
    return decoder


def linears(layer: nn.Module) -> dict[str, nn.Linear]:
    """The nn.Linear modules of one decoder layer that are to be quantized, by name inside the layer, in order.

    Those of routers are left out, and subclasses that compute something else than W x + b.
    """
    routers = tuple(f"{name}." for name in (*routers_of(layer), *listed_routers(layer)))
    return {
        name: module
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
        and not f"{name}.".startswith(routers or ("?",))
        and "weight" not in module._modules  # taken apart
        and is_plain(module)
    }


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Raises NestQuantError for a model of a kind that is not supported, naming the module and the reason."""
    if getattr(model.config, "is_encoder_decoder", False):
        raise NestQuantError(f"{_kind(model)} is an encoder–decoder", _REFUSED, _REMEDY)
    refuse_without_text(model, _REFUSED, _REMEDY)


def _has_linear(stack: nn.ModuleList) -> bool:
    return all(any(isinstance(module, nn.Linear | Conv1D) for module in layer.modules()) for layer in stack)


def _kind(model: PreTrainedModel) -> str:
    return type(model).__name__
