"""Puts the quantized modules of a layout into a model, and the packed cache into its forward."""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from ..base.errors import NestQuantError
from ..codecs.registry import codec_of
from ..models.structure import Decoder, find_decoder, open_decoder
from ..rotation.reflections import Reflections
from .attach_tables import attach_tables
from .cache import PackedCache, RoundingCache, begin_behind, is_packed, pack_layers
from .cache_hooks import give_cache
from .grouped_experts import use_grouped_experts
from .inputs import InputQuantizer, padded_size
from .layout import Layout, LinearLayout
from .linear import QuantizedLinear
from .untie import untie_layers


def attach(model: PreTrainedModel, layout: Layout) -> None:
    """Replaces every nn.Linear named in the layout by an empty QuantizedLinear and packs the cache.

    A weight that stays in 16 bits is carried over; words and row scales are to be loaded after.

    Raises:
        NestQuantError: the layout and the model do not fit each other.
    """
    decoder = open_decoder(model) if layout.linears else find_decoder(model)
    _refuse_other_class(model, decoder, layout)
    untie_layers(model, decoder)
    sources: dict[str, InputQuantizer] = {}
    for name, linear in layout.linears.items():
        original = _linear_at(model, name, (linear.out_features, linear.in_features), linear.bias)
        weight = original.weight
        if linear.input not in sources:
            sources[linear.input] = _input_quantizer(layout, linear, weight.device)
        source = sources[linear.input]
        code: Any = linear.code
        kind = QuantizedLinear if code is None else codec_of(code).linear
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
    attach_tables(model, layout)
    if layout.linears:
        use_grouped_experts(model)
    if layout.cache:
        attach_cache(model, decoder, layout)


def _refuse_other_class(model: PreTrainedModel, decoder: Decoder, layout: Layout) -> None:
    """Raises NestQuantError for a model whose layers have other names, such as the language model of another alone."""
    first = next(iter(layout.linears), None)
    if first is not None and not any(name.startswith(f"{decoder.prefix}.") for name in layout.linears):
        raise NestQuantError(
            f"config.json names matrices such as {first}, {type(model).__name__} has its layers at {decoder.prefix}",
            "the checkpoint was not loaded",
            "open it by an Auto class that makes the class its architectures name, such as AutoModelForImageTextToText",
        )


def _input_quantizer(layout: Layout, linear: LinearLayout, device: torch.device) -> InputQuantizer:
    count, order = layout.reflections.get(linear.input, 0), padded_size(linear.in_features)
    learned = Reflections(count, order, device) if count else None
    code, parts = layout.inputs[linear.input], layout.parts.get(linear.input, 1)
    return InputQuantizer(linear.in_features, layout.seed_of(linear.input), code, learned, parts)


def attach_cache(model: PreTrainedModel, decoder: Decoder, layout: Layout) -> None:
    """Makes every forward of the model's decoder round keys and values, and keep them packed if it is to keep them.

    Whoever calls it, with a cache or without one: the same keys and values are seen.
    """
    if len(layout.cache) != len(decoder.layers):
        raise NestQuantError(
            f"config.json has cache codes for {len(layout.cache)} layers, the model has {len(decoder.layers)}",
            "the checkpoint was not loaded",
            "fetch or quantize the checkpoint again",
        )
    config = model.config.get_text_config(decoder=True)
    coded = [layer for layer, codes in zip(decoder.layers, layout.cache, strict=True) if codes is not None]
    codes = layout.cache, layout.rotation_seed, layout.unrounded
    give_cache(coded, RoundingCache(config, *codes))
    kind: Any = type(model)
    if not kind._supports_default_dynamic_cache():
        _refuse_sinks(model, layout)
        _pack_what_comes(coded[0], config, layout)
        return
    names = list(inspect.signature(decoder.owner.forward).parameters)
    first = min([names.index(name) for name in ("past_key_values", "use_cache") if name in names], default=len(names))

    def with_packed_cache(owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        kwargs |= dict(zip(names[first:], args[first:], strict=False))
        cache = kwargs.get("past_key_values")
        if cache is not None and not is_packed(cache):
            _pack_in_place(cache, config, layout)
        elif cache is None and _keeps(owner, kwargs.get("use_cache")):
            kwargs["past_key_values"] = PackedCache(config, *codes)
        if layout.unrounded.sinks and kwargs.get("past_key_values") is not None:
            begin_behind(
                kwargs["past_key_values"], (kwargs | dict(zip(names, args, strict=False))).get("attention_mask")
            )
        return args[:first], kwargs

    decoder.owner.register_forward_pre_hook(with_packed_cache, with_kwargs=True)


def _refuse_sinks(model: PreTrainedModel, layout: Layout) -> None:
    """Raises NestQuantError where nothing tells a cache which tokens are padding, so that sinks could be."""
    if layout.unrounded.sinks:
        raise NestQuantError(
            f"{type(model).__name__} makes a cache of its own, which does not know where sequences begin",
            "its first tokens cannot be kept in 16 bits",
            "quantize without --kv-sinks",
        )


def _pack_what_comes(layer: nn.Module, config: Any, layout: Layout) -> None:
    """Packs the caches of a model that makes them itself, when they reach the first layer that has codes."""

    def packing(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for cache in (*args, *kwargs.values()):
            if isinstance(cache, Cache) and not isinstance(cache, RoundingCache) and not is_packed(cache):
                _pack_in_place(cache, config, layout)

    layer.register_forward_pre_hook(packing, with_kwargs=True)


def _keeps(owner: Any, use_cache: bool | None) -> bool:
    """Whether a forward is to return keys and values: as transformers decides it."""
    if getattr(owner, "gradient_checkpointing", False) and owner.training:
        return False
    return bool(getattr(owner.config, "use_cache", True) if use_cache is None else use_cache)


def _pack_in_place(cache: Cache, config: Any, layout: Layout) -> None:
    """generate() brings an empty DynamicCache of its own and keeps hold of it, so its layers are exchanged."""
    if not isinstance(cache, DynamicCache) or cache.get_seq_length() > 0:
        raise NestQuantError(
            f"past_key_values is a {type(cache).__name__} with 16-bit keys and values",
            "the model's packed cache cannot be used",
            "pass no cache, an empty DynamicCache or a PackedCache",
        )
    pack_layers(cache, config, layout.cache, layout.rotation_seed, layout.unrounded)


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
    """The quantized Linears of a model by name, a quantized head among them."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
