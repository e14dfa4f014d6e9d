"""One streaming pass over the layers of a model: yields each layer's statistics as soon as they are known."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..codecs.heads import check_head_size
from ..errors import NestQuantError
from ..lattice.shape import CodeShape
from ..models.structure import Decoder, linears
from .observer import VECTORS, InputGroups, KVObserver
from .stack import LayerStack
from .statistics import NOISE_TOKENS, InputCollector, LayerStatistics, fit_cache, watch_all


@dataclass(frozen=True)
class Coding:
    """What is to be coded, as far as calibration is concerned.

    Attributes:
        act_shape, kv_shape: codes to fit, None for 16 bits.
        seed: of the rotation signs and of every random choice.
    """

    act_shape: CodeShape | None
    kv_shape: CodeShape | None
    seed: int


def collect(
    model: PreTrainedModel, decoder: Decoder, windows: Tensor, coding: Coding, skip: list[bool] | None = None
) -> Iterator[LayerStatistics | None]:
    """Statistics of each decoder layer in order.

    Args:
        model: in evaluation mode; its layers are left as they are.
        decoder: its stack.
        windows: (windows, tokens) int64.
        coding: what to fit.
        skip: layers whose statistics are not needed; None is yielded for them.

    Raises:
        NestQuantError: hidden states that are not finite, or heads that cannot be coded.
    """
    config = model.config.get_text_config(decoder=True)
    observer = KVObserver(config, VECTORS / max(1, windows.numel()))
    stack = LayerStack(model, decoder, windows, observer)
    observer.watching = coding.kv_shape is not None
    for index, layer in enumerate(decoder.layers):
        if skip is not None and skip[index]:
            if not all(skip[index:]):
                deque(stack.run(index), maxlen=0)  # the next layers need the hidden states behind this one
                observer.take()
            yield None
        else:
            yield _layer_statistics(stack, index, layer, coding)


def _layer_statistics(stack: LayerStack, index: int, layer: nn.Module, coding: Coding) -> LayerStatistics:
    name = stack.decoder.layer_name(index)
    stack.observer.reseed(coding.seed + index)
    modules = linears(layer)
    groups = InputGroups()
    with groups.watch(modules):
        stack.peek(index)
    per_window = -(-NOISE_TOKENS // len(stack.hidden))
    collectors = {
        leader: InputCollector(modules[leader].in_features, per_window, coding.seed, stack.device)
        for leader in groups.members
    }
    with watch_all(collectors, modules):
        for number in stack.run(index):
            if not torch.isfinite(stack.hidden[number]).all():
                raise NestQuantError(
                    f"the output of {name} has NaN or infinite values on calibration window {number}",
                    "calibration stopped",
                    "check the model's weights, or load it in a wider dtype",
                )
    inputs = {
        leader: collector.finish(groups.members[leader], coding.act_shape, coding.seed, f"{name}.{leader}")
        for leader, collector in collectors.items()
    }
    cache = None
    if coding.kv_shape is not None:
        sample = stack.observer.take()
        if sample is None:
            raise NestQuantError(
                f"{name} does not keep keys and values in a cache",
                "keys and values cannot be quantized",
                "quantize with --kv-bits 16",
            )
        for vectors in sample:
            check_head_size(vectors.shape[-1])
        cache = fit_cache(sample, coding.kv_shape, coding.seed)
    return LayerStatistics(inputs, cache)
