"""Puts the quantized modules of a layout into a model, and the packed cache into its forward."""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from ..codecs.glvq import LatticeCode
from ..codecs.integer import IntegerCode
from ..errors import NestQuantError
from ..models.structure import Decoder, find_decoder
from ..rotation.reflections import Reflections
from .cache import PackedCache, is_packed, pack_layers
from .inputs import InputQuantizer, padded_size
from .integer_linear import IntegerLinear
from .lattice_linear import LatticeLinear
from .layout import Layout, LinearLayout
from .linear import QuantizedLinear

_KINDS: dict[type, type[QuantizedLinear]] = {IntegerCode: IntegerLinear, LatticeCode: LatticeLinear}


def attach(model: PreTrainedModel, layout: Layout) -> None:
    """Replaces every nn.Linear named in the layout by an empty QuantizedLinear and packs the cache.

    A weight that stays in 16 bits is carried over; words and row scales are to be loaded after.

    Raises:
        NestQuantError: the layout and the model do not fit each other.
    """
    decoder = find_decoder(model)
    sources: dict[str, InputQuantizer] = {}
    for name, linear in layout.linears.items():
        original = _linear_at(model, name, (linear.out_features, linear.in_features), linear.bias)
        weight = original.weight
        if linear.input not in sources:
            sources[linear.input] = _input_quantizer(layout, linear, weight.device)
        source = sources[linear.input]
        code: Any = layout.code_of(linear)
        kind = _KINDS.get(type(code), QuantizedLinear)
        sizes = linear.in_features, linear.out_features, linear.bias
        module = kind(*sizes, source, code, weight.dtype, weight.device)
        if linear.input == name and source.reflections is not None:
            module.turn = source.reflections  # the state dict has it once, with the first Linear that takes the input
        if code is None:
            module.weight = nn.Parameter(weight.detach(), requires_grad=False)
        if original.bias is not None:
            module.bias = nn.Parameter(original.bias.detach(), requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
    if layout.cache:
        attach_cache(model, decoder, layout)


def _input_quantizer(layout: Layout, linear: LinearLayout, device: torch.device) -> InputQuantizer:
    count, order = layout.reflections.get(linear.input, 0), padded_size(linear.in_features)
    learned = Reflections(count, order, device) if count else None
    return InputQuantizer(linear.in_features, layout.rotation_seed, layout.inputs[linear.input], learned)


def attach_cache(model: PreTrainedModel, decoder: Decoder, layout: Layout) -> None:
    """Makes every forward of the model's decoder keep keys and values packed, whoever calls it."""
    if len(layout.cache) != len(decoder.layers):
        raise NestQuantError(
            f"config.json has cache codes for {len(layout.cache)} layers, the model has {len(decoder.layers)}",
            "the checkpoint was not loaded",
            "fetch or quantize the checkpoint again",
        )
    config = model.config.get_text_config(decoder=True)

    names = list(inspect.signature(decoder.owner.forward).parameters)
    place = names.index("past_key_values") if "past_key_values" in names else None

    def with_packed_cache(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if place is not None and place < len(args):
            kwargs["past_key_values"] = args[place]
            args, rest = args[:place], args[place + 1 :]
            kwargs |= dict(zip(names[place + 1 :], rest, strict=False))
        cache = kwargs.get("past_key_values")
        if cache is None:
            kwargs["past_key_values"] = PackedCache(config, layout.cache, layout.rotation_seed)
        elif not is_packed(cache):
            _pack_in_place(cache, config, layout)
        return args, kwargs

    decoder.owner.register_forward_pre_hook(with_packed_cache, with_kwargs=True)


def _pack_in_place(cache: Cache, config: Any, layout: Layout) -> None:
    """generate() brings an empty DynamicCache of its own and keeps hold of it, so its layers are exchanged."""
    if not isinstance(cache, DynamicCache) or cache.get_seq_length() > 0:
        raise NestQuantError(
            f"past_key_values is a {type(cache).__name__} with 16-bit keys and values",
            "the model's packed cache cannot be used",
            "pass no cache, an empty DynamicCache or a PackedCache",
        )
    pack_layers(cache, config, layout.cache, layout.rotation_seed)


def _linear_at(model: nn.Module, name: str, shape: tuple[int, int], bias: bool) -> nn.Linear:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    fits = isinstance(module, nn.Linear) and tuple(module.weight.shape) == shape and (module.bias is not None) == bias
    if not isinstance(module, nn.Linear) or not fits:
        kind = "with" if bias else "without"
        raise NestQuantError(
            f"config.json names a quantized matrix {name} of shape {shape} {kind} bias, which the model does not have",
            "the checkpoint was not loaded",
            "fetch or quantize the checkpoint again",
        )
    return module


def quantized_linears(model: nn.Module) -> dict[str, QuantizedLinear]:
    """The quantized Linears of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
