"""Runs a model's decoder layers one at a time on many windows, without knowing the model.

The model's own forward prepares everything around the stack (embeddings, masks, position embeddings). One forward with
recording layers shows what it hands to each layer; after that each layer is called directly with that and the hidden
states, so that one layer at a time is enough.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..models.structure import Decoder
from .observer import KVObserver


class _Stop(Exception):  # noqa: N818 - ends a forward early, it is no error
    """Raised inside the first layer once its input is known."""


class LayerStack:
    """The decoder layers of a model with the hidden states of all windows in front of the next layer.

    Args:
        model: in evaluation mode.
        decoder: its stack.
        windows: (windows, tokens) int64 token ids, all windows of one length and without padding.
        observer: cache that the attention layers are given; it sees all keys and values.

    Attributes:
        hidden: one tensor (1, tokens, width) a window, on the CPU.
    """

    def __init__(self, model: PreTrainedModel, decoder: Decoder, windows: Tensor, observer: KVObserver) -> None:
        self.model, self.decoder, self.observer = model, decoder, observer
        self.device = next(model.parameters()).device
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.hidden: list[Tensor] = []
        self._tuple = False  # whether a layer returns a tuple, and what follows the hidden states in it
        self._rest: tuple[Any, ...] = ()
        self._record(windows[:1])
        for window in windows[1:]:
            self.hidden.append(self._embed(window[None]))

    @torch.inference_mode()
    def run(self, index: int) -> Iterator[int]:
        """Takes all windows through layer `index`; yields the window's number after each."""
        layer = self.decoder.layers[index]
        args, kwargs = self._calls[index]
        for number, hidden in enumerate(self.hidden):
            self.hidden[number] = _first(layer(hidden.to(self.device), *args, **kwargs)).cpu()
            yield number

    @torch.inference_mode()
    def peek(self, index: int) -> None:
        """Takes the first window through layer `index` for its hooks alone; nothing is kept or observed."""
        args, kwargs = self._calls[index]
        watching, self.observer.watching = self.observer.watching, False
        self.decoder.layers[index](self.hidden[0].to(self.device), *args, **kwargs)
        self.observer.watching = watching

    @torch.inference_mode()
    def _record(self, window: Tensor) -> None:
        with _forwards(self.decoder.layers, self._recording):
            self._forward(window)

    def _recording(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            hidden, args, kwargs = _split(args, kwargs)
            self._calls.append((args, kwargs))
            if index:
                return (hidden, *self._rest) if self._tuple else hidden
            self.hidden.append(hidden.cpu())
            output = forward(hidden, *args, **kwargs)  # the real layer shows what a layer returns
            self._tuple = isinstance(output, tuple)
            self._rest = output[1:] if self._tuple else ()
            return output

        return call

    @torch.inference_mode()
    def _embed(self, window: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def stopping(_: int, __: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                seen.append(_split(args, kwargs)[0])
                raise _Stop

            return call

        with _forwards(self.decoder.layers, stopping), suppress(_Stop):
            self._forward(window)
        return seen[0].cpu()

    def _forward(self, window: Tensor) -> None:
        base = self.model.get_decoder()  # without the head, whose logits nobody reads
        base(input_ids=window.to(self.device), past_key_values=self.observer, use_cache=True)


@contextmanager
def _forwards(layers: nn.ModuleList, make: Callable[[int, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Exchanges the forward of each layer for make(index, forward) and puts the old ones back."""
    for index, layer in enumerate(layers):
        layer.forward = make(index, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    if args:
        return args[0], args[1:], kwargs
    return kwargs["hidden_states"], (), {key: value for key, value in kwargs.items() if key != "hidden_states"}


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
