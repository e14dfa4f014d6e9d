"""What torch.compile puts into its graph whole: products with quantized weights, lookups, codes of head vectors.

Dynamo cannot look into compiled kernels, nor into Python that remembers inputs. So while it traces, these are calls of
operators, which know the layer or the codes by a number and do what is done without a compiler. A number is one of its
process: who is copied or unpickled registers again.
"""

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor

from ..codecs.vectors import VectorCode
from .cache_codes import CacheCodes, pack_heads, round_heads, unpack_heads
from .gradient import bias_gradient, input_gradient

_numbers = itertools.count()
_layers: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()
_numbers_of_codes: dict[CacheCodes, int] = {}
_codes: dict[int, CacheCodes] = {}


def register_layer(layer: Any) -> int:
    """A number for a QuantizedLinear or a QuantizedEmbedding, for as long as it lives."""
    number = next(_numbers)
    _layers[number] = layer
    return number


def register_codes(codes: CacheCodes) -> int:
    """A number for the codes of a layer's keys and values, the same for equal codes. They are kept for good."""
    number = _numbers_of_codes.setdefault(codes, next(_numbers))  # one of them also if two threads ask at a time
    _codes[number] = codes
    return number


def code_of(number: int, keys: bool) -> VectorCode:
    """The code of keys, or else of values, of the codes with this number."""
    codes = _codes[number]
    return codes.keys if keys else codes.values


@torch.library.custom_op("nestquant::linear", mutates_args=())
def linear(x: Tensor, bias: Tensor | None, layer: int) -> Tensor:
    """x (..., in_features) to (..., out_features), by the layer's own forward with this bias."""
    y: Tensor = _layers[layer].compute(x, bias)
    return y.contiguous()  # of one product for several layers each has some columns


@linear.register_fake
def _(x: Tensor, bias: Tensor | None, layer: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], _layers[layer].out_features)


@torch.library.custom_op("nestquant::linear_backward", mutates_args=())
def linear_backward(gradient: Tensor, layer: int) -> Tensor:
    """The straight-through gradient of the input."""
    return input_gradient(_layers[layer], gradient)


@linear_backward.register_fake
def _(gradient: Tensor, layer: int) -> Tensor:
    return gradient.new_empty(*gradient.shape[:-1], _layers[layer].in_features)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor | None, int], output: Tensor) -> None:
    bias, ctx.layer = inputs[1:]
    ctx.bias_type = None if bias is None else bias.dtype


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    of_x = linear_backward(gradient, ctx.layer) if ctx.needs_input_grad[0] else None
    return of_x, bias_gradient(gradient, ctx.bias_type) if ctx.needs_input_grad[1] else None, None


linear.register_autograd(_gradients, setup_context=_remember)


@torch.library.custom_op("nestquant::lookup", mutates_args=())
def lookup(ids: Tensor, embedding: int) -> Tensor:
    """The rows of token ids (...), (..., embedding_dim); they are constants, so there is no gradient."""
    rows: Tensor = _layers[embedding].look_up(ids)
    return rows


@lookup.register_fake
def _(ids: Tensor, embedding: int) -> Tensor:
    of = _layers[embedding]
    return ids.new_empty(*ids.shape, of.embedding_dim, dtype=of.dtype)


@torch.library.custom_op("nestquant::round_heads", mutates_args=())
def round_states(states: Tensor, codes: int, keys: bool, seed: int | None) -> tuple[Tensor, Tensor]:
    """States packed, and what that stands for, as `round_heads` gives them; `codes` is a number of `register_codes`."""
    packed, rounded = round_heads(states, code_of(codes, keys), seed)
    return packed, rounded.contiguous()


@round_states.register_fake
def _(states: Tensor, codes: int, keys: bool, seed: int | None) -> tuple[Tensor, Tensor]:
    return _empty(states, codes, keys), torch.empty_like(states, memory_format=torch.contiguous_format)


@torch.library.custom_op("nestquant::pack_heads", mutates_args=())
def pack_states(states: Tensor, codes: int, keys: bool, seed: int | None) -> Tensor:
    """States (..., head size) packed, (..., bytes) uint8; `codes` is a number of `register_codes`."""
    return pack_heads(states, code_of(codes, keys), seed)


@pack_states.register_fake
def _(states: Tensor, codes: int, keys: bool, seed: int | None) -> Tensor:
    return _empty(states, codes, keys)


@torch.library.custom_op("nestquant::unpack_heads", mutates_args=())
def unpack_states(packed: Tensor, like: Tensor, codes: int, keys: bool, seed: int | None) -> Tensor:
    """What packed states (..., bytes) stand for, in the head size and dtype of `like`."""
    code = code_of(codes, keys)
    return unpack_heads(packed, like.shape[-1], code, seed, like.dtype).contiguous()


@unpack_states.register_fake
def _(packed: Tensor, like: Tensor, codes: int, keys: bool, seed: int | None) -> Tensor:
    return like.new_empty(*packed.shape[:-1], like.shape[-1])


def _empty(states: Tensor, codes: int, keys: bool) -> Tensor:
    size = code_of(codes, keys).vector_bytes(states.shape[-1])
    return states.new_empty(*states.shape[:-1], size, dtype=torch.uint8)
