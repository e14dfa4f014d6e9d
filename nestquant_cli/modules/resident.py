"""Which form quantized weights have in memory: packed words, or int8 for speed."""

import logging

import torch
from torch import nn

from ..base.device import free_memory
from ..base.errors import NestQuantError
from ..base.names import nearest
from ..e8.code import BLOCK
from ..kernels import for_device
from ..models.experts import ExpertMatrices
from .embedding import QuantizedEmbedding
from .joined import join
from .linear import QuantizedLinear

FORMS = ("packed", "int8", "auto")
_LISTS = (nn.ModuleList, nn.ModuleDict, ExpertMatrices)
_SHARE = 0.25  # of the free memory, which "auto" lets int8 weights take

logger = logging.getLogger("nestquant")


def set_resident(model: nn.Module, form: str) -> str:
    """Brings the quantized Linears of a loaded model into a form; saving the model gives the same words from either.

    Measured on SmolLM2-135M with 4 bits and 2 cores of a Xeon, against bfloat16: int8 takes 0.53 of the memory and 0.73
    of the time for a token, packed 0.25 of the memory and 9.3 times the time. As with `Module.to`, no other thread may
    be in a forward of the model meanwhile.

    Args:
        model: a model with `QuantizedLinear` modules; any other model is left unchanged.
        form: "packed" keeps the words, 4 bits a weight at 4 bits, and decodes them inside each product; "int8" decodes
            once and keeps int8, 8.5 bits a weight, which is faster; "auto" is int8 where all the weights in int8 take
            at most a quarter of the memory that is free now, else packed. A weight whose code needs more than int8, one
            of lattices, and one with words that no encoder writes, stays packed.

    Returns:
        the form that was chosen, "packed" or "int8".

    Raises:
        NestQuantError: no such form.

    Example:
        >>> model = AutoModelForCausalLM.from_pretrained("./Meta-Llama-3-8B-nestquant-w4a4kv4")
        >>> set_resident(model, "int8")
        'int8'
    """
    check_form(form)
    named = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear) and module.code is not None
    }
    layers = list(named.values())
    if form == "auto":
        form = _choose([layer for layer in layers if layer.code is not None and layer.code.int8])
    for layer in layers:
        if form == "packed":
            layer.hold_packed()
        elif not layer.hold_int8():
            logger.info("a weight of %d × %d stays packed", layer.out_features, layer.in_features)
    _join(model, named)
    return form


def check_form(form: str) -> None:
    """Raises NestQuantError unless `form` is one that `set_resident` takes."""
    if form not in FORMS:
        raise NestQuantError(f"there is no resident form '{form}'", "weights stay as they are", nearest(form, FORMS))


def set_resident_if_quantized(model: nn.Module, form: str) -> str | None:
    """`set_resident` for a model that may be no quantized one.

    Returns:
        the form that was chosen; None where the model has no quantized Linear, which is left as it is.
    """
    check_form(form)
    quantized = any(isinstance(module, QuantizedLinear) for module in model.modules())
    return set_resident(model, form) if quantized else None


def resident_bytes(model: nn.Module) -> int:
    """Bytes of all quantized weights and embeddings in memory, with scales and tables, without biases."""
    whole = sum(module.resident_bytes() for module in model.modules() if isinstance(module, QuantizedLinear))
    alone = [module for module in model.modules() if isinstance(module, QuantizedEmbedding) and not module.head]
    return whole + sum(buffer.nbytes for module in alone for buffer in module.buffers(recurse=False))


def _join(model: nn.Module, layers: dict[str, QuantizedLinear]) -> None:
    """Lays the int8 weights with the same input one after another, where a kernel multiplies them in one go.

    Those in different members of a list, as experts are, get different tokens of an input: each member is by itself.
    """
    lists = {name for name, module in model.named_modules() if isinstance(module, _LISTS)}
    groups: dict[tuple[int, str], list[QuantizedLinear]] = {}
    for name, layer in layers.items():
        if layer.form().integers and layer.resident == "int8" and for_device(layer.v.device).limits.joined_tokens:
            groups.setdefault((id(layer.source), _member(name, lists)), []).append(layer)
    for group in (group for group in groups.values() if len(group) > 1):  # a single one is its own whole
        matrices, scales, joined = join([layer.v for layer in group], [layer.row_scale for layer in group])
        start = 0
        for layer, v, scale in zip(group, matrices, scales, strict=True):
            layer.v, layer.row_scale = v, scale
            layer.set_joined(joined, start)
            start += layer.out_features


def _member(name: str, lists: set[str]) -> str:
    """The member of the innermost list that a module is in."""
    member = name
    while member and member.rpartition(".")[0] not in lists:
        member = member.rpartition(".")[0]
    return member


def int8_fits(entries: int, device: torch.device) -> bool:
    """Whether "auto" takes the int8 form: weights, and indices of multipliers, against the memory that is free now.

    Args:
        entries: number of entries of all weights that have an int8 form.
        device: where they are.
    """
    return entries > 0 and entries * (BLOCK + 1) // BLOCK <= _SHARE * free_memory(device)


def _choose(layers: list[QuantizedLinear]) -> str:
    entries = sum(layer.out_features * layer.source.padded for layer in layers)
    return "int8" if layers and int8_fits(entries, layers[0].row_scale.device) else "packed"
