"""Puts the quantized modules of a layout into a model, and the packed cache into its forward."""

import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from ..errors import NestQuantError
from ..models.structure import Decoder, find_decoder
from .cache import PackedCache, is_packed, pack_layers
from .inputs import InputQuantizer
from .layout import Layout
from .linear import QuantizedLinear


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
        if linear.input not in sources:
            sources[linear.input] = InputQuantizer(linear.in_features, layout.seed, layout.inputs[linear.input])
        code = layout.code_of(linear)
        weight = original.weight
        module = QuantizedLinear(
            linear.in_features,
            linear.out_features,
            linear.bias,
            sources[linear.input],
            code,
            weight.dtype,
            weight.device,
        )
        if code is None:
            module.weight = nn.Parameter(weight.detach(), requires_grad=False)
        if original.bias is not None:
            module.bias = nn.Parameter(original.bias.detach(), requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
    if layout.cache:
        attach_cache(model, decoder, layout)


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
            kwargs["past_key_values"] = PackedCache(config, layout.cache, layout.seed)
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
    pack_layers(cache, config, layout.cache, layout.seed)


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
