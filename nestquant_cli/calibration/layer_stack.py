"""Runs a model's decoder layers one at a time on many windows, without knowing the model.

The model's own forward prepares everything around the stack (embeddings, masks, position embeddings). One forward with
recording layers shows what it hands to each layer; after that each layer is called directly with that and the hidden
states, so that one layer at a time is enough. That holds for models which hand a layer nothing else that depends on the
text, so a second window is recorded too and compared.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..base.device import threads_of
from ..base.errors import NestQuantError
from ..base.memory import return_blocks
from ..models.language_model import runner
from ..models.weights import Weights
from ..parallel.tiles import run_pieces
from .current_window import in_window
from .hidden_states import HiddenStates
from .kv_observer import KVObserver

Call = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a layer besides the hidden states


class _Stop(Exception):  # noqa: N818 - ends a forward early, it is no error
    """Ends a forward whose rest is not needed."""


def _stop(*_: Any) -> None:
    raise _Stop


class LayerStack:
    """The decoder layers of a model with the hidden states of all windows in front of the next layer.

    Args:
        weights: weights of the model; whoever runs a layer has to hold it in memory.
        windows: (windows, tokens) int64 token ids, all windows of one length and without padding.
        observer: cache that the attention layers are given; it sees all keys and values.
        hidden: empty store for the hidden states; None keeps them in memory up to the default budget.

    Attributes:
        hidden: hidden states, one tensor (1, tokens, width) a window, on the CPU or in a file.

    Raises:
        NestQuantError: a layer is given something else that depends on the text, or is not called exactly once.
    """

    def __init__(
        self, weights: Weights, windows: Tensor, observer: KVObserver, hidden: HiddenStates | None = None
    ) -> None:
        self.model, self.decoder, self.observer = weights.model, weights.decoder, observer
        self.device = weights.device
        self._calls: dict[int, Call] = {}
        self.hidden = HiddenStates() if hidden is None else hidden
        self._tuple = False  # whether a layer returns a tuple; `_rest` is what follows the hidden states in it
        self._rest: tuple[Any, ...] = ()
        with weights.around(), weights.layer(0):
            self._record(windows[:1])
            if len(windows) > 1:
                first, self._calls = self._calls, {}
                self._record(windows[1:2])
                self._refuse_text_in_calls(first)
            for window in windows[2:]:
                self.hidden.append(self._embed(window[None]))

    def twin(self, hidden: HiddenStates) -> "LayerStack":
        """The same layers with a copy of the hidden states in `hidden`."""
        other = copy.copy(self)
        other.hidden = hidden
        for states in self.hidden:
            hidden.append(states)
        return other

    def run(self, index: int, until: nn.Module | None = None) -> Iterator[range]:
        """Takes all windows through layer `index`, a few at a time, each on a thread of its own.

        Yields:
            numbers of the windows that have passed since the last yield.

        Args:
            index: number of the layer.
            until: module of the layer in front of which the run ends; the hidden states then stay as they were.
        """
        layer = self.decoder.layers[index]
        args, kwargs = self._calls[index]

        @torch.inference_mode()
        def through(number: int) -> None:
            with in_window(number), suppress(_Stop):
                after[number] = _first(layer(self.hidden[number].to(self.device), *args, **kwargs)).cpu()

        at_once = threads_of(self.device)
        for start in range(0, len(self.hidden), at_once):
            after: dict[int, Tensor] = {}
            numbers = range(start, min(start + at_once, len(self.hidden)))
            with nullcontext() if until is None else until.register_forward_pre_hook(_stop):
                run_pieces(through, numbers)
            for number, hidden in after.items():
                self.hidden[number] = hidden
            yield numbers
        return_blocks()

    @torch.inference_mode()
    def _record(self, window: Tensor) -> None:
        with _forwards(self.decoder.layers, self._recording):
            self._forward(window)
        for index in range(len(self.decoder.layers)):
            if index not in self._calls:
                raise _unusable(f"{self.decoder.layer_name(index)} is not called")

    def _recording(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            hidden, args, kwargs = _split(args, kwargs)
            if index in self._calls:
                raise _unusable(f"{self.decoder.layer_name(index)} is called more than once")
            self._calls[index] = args, kwargs
            if index:
                return (hidden, *self._rest) if self._tuple else hidden
            self.hidden.append(hidden)
            output = forward(hidden, *args, **kwargs)  # the real layer shows what a layer returns
            self._tuple = isinstance(output, tuple)
            self._rest = output[1:] if self._tuple else ()
            return output

        return call

    def _refuse_text_in_calls(self, first: dict[int, Call]) -> None:
        for index, call in first.items():
            if not _same(call, self._calls[index]):
                raise _unusable(f"{self.decoder.layer_name(index)} is given more than hidden states of the text")

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
        return seen[0]

    def _forward(self, window: Tensor) -> None:
        _, base = runner(self.model, self.decoder.prefix)  # without the head, as logits are not needed
        base(input_ids=window.to(self.device), past_key_values=self.observer, use_cache=True)


@contextmanager
def _forwards(layers: nn.ModuleList, make: Callable[[int, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Within it the forward of each layer is make(index, forward)."""
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


def _unusable(cause: str) -> NestQuantError:
    return NestQuantError(
        cause, "its inputs cannot be measured", "use a model whose decoder layers run once each, one after the other"
    )


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments of a layer are equal. Values other than tensors and containers of them are compared by
    their type alone."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return type(one) is type(other)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
