"""Finds what is to be quantized in a decoder by its structure: the stack of layers and the matrices inside each.

No list of model names: a model is supported when its decoder layers form one nn.ModuleList and every large matrix in
them belongs to an nn.Linear, a Conv1D or to experts. Of a model of images with text they are those of the language
model inside it (`models.language_model`). What does not fit is refused by name, with the reason; which matrices are
small enough to stay as they are, `models.small_matrices` says.
"""

from collections.abc import Iterable
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
    """The stack of decoder layers: the first with as many as the configuration has, else the only one.

    A configuration may count something else than layers, such as attentions where a layer has two.

    Raises:
        NestQuantError: no such stack, several, one that shares weights with other parts, or the model is of a kind
            that is not supported.
    """
    refuse_unsupported(model)
    config = model.config.get_text_config(decoder=True)
    depth = getattr(config, "decoder_layers", None) or getattr(config, "num_hidden_layers", None)
    stacks = {name: module for name, module in text_stacks(model) if _has_linear(module)}
    found = [name for name, module in stacks.items() if len(module) == depth]
    if not found:
        found = [name for name in _outermost(stacks) if _is_most(stacks[name], model.get_submodule(_around(name)))]
        if len(found) != 1:
            raise _without_stack(model, depth)
    _refuse_shared(model, found[0])
    owner_name = _around(found[0])
    return Decoder(model.get_submodule(owner_name), owner_name, stacks[found[0]], found[0])


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


def _refuse_shared(model: PreTrainedModel, prefix: str) -> None:
    """Raises NestQuantError where weights of the decoder layers belong to other parts of the model, too."""
    inside = f"{prefix}."
    for name, other in model.all_tied_weights_keys.items():
        if name.startswith(inside) != other.startswith(inside):
            raise NestQuantError(
                f"{_kind(model)} uses the weights of its decoder layers elsewhere, too: {name} is {other}",
                _REFUSED,
                "use a model whose decoder layers have their weights alone; docs/models.md lists those that work",
            )


def _outermost(names: Iterable[str]) -> list[str]:
    """Those of some modules' names that are inside none of the others."""
    kept: list[str] = []
    for name in sorted(names, key=len):
        if not name.startswith(tuple(f"{outer}." for outer in kept)):
            kept.append(name)
    return kept


def _is_most(stack: nn.ModuleList, owner: nn.Module) -> bool:
    """Whether most entries of a module's matrices, tables of embeddings left out, are in a stack inside it."""
    tables = {id(module.weight) for module in owner.modules() if isinstance(module, nn.Embedding)}
    sizes = {id(p): p.numel() for p in owner.parameters() if p.dim() >= 2 and id(p) not in tables}
    return 2 * sum(sizes.get(id(p), 0) for p in stack.parameters()) > sum(sizes.values())


def _without_stack(model: PreTrainedModel, depth: int | None) -> NestQuantError:
    """The error for a model without one stack of decoder layers, which names the stacks that it has."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    lists = {name: module for name, module in lists.items() if len(module) and _has_linear(module)}
    stacks = ", ".join(f"{name} ({len(lists[name])})" for name in sorted(_outermost(lists)))
    counted = "" if depth is None else f", and config.json counts {depth}"
    has = f"its layers are in {stacks}" if "," in stacks else f"what it has is {stacks}" if stacks else "it has none"
    return NestQuantError(
        f"{_kind(model)} has not one stack of decoder layers with nn.Linear inside: {has}{counted}",
        _REFUSED,
        "use a model with one stack of decoder layers; docs/models.md lists those that work",
    )


def _around(name: str) -> str:
    return name.rpartition(".")[0]


def _kind(model: PreTrainedModel) -> str:
    return type(model).__name__
